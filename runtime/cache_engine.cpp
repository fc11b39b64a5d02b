#include "runtime/cache_engine.hpp"

#include <vector>

#include "engines/engines.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "runtime/artifact_model.hpp"

namespace kvquant::runtime {

std::unique_ptr<engine> make_cache(std::filesystem::path const& artifact, std::string_view backend,
                                   model_config const& config, std::string const& model_hash,
                                   cache_options const& options) {
  auto made = make_engine(backend, artifact, options);
  require_made_for(artifact, made->info(), config, model_hash);
  return made;
}

std::unique_ptr<engine> make_exact_cache(model_config const& config, std::string const& model_hash,
                                         std::size_t max_tokens, std::string_view backend) {
  auto exact = make_passthrough_artifact(shape_of(config));
  exact.info.origin.model_name = config.name;
  exact.info.origin.model_hash = model_hash;
  return make_engine(backend, exact, {.max_tokens = max_tokens});
}

matrix forward(model const& m, std::span<token_id const> ids, engine_sequence& sequence, profile* spent) {
  attend_options const options{.softmax_scale = m.config().softmax_scale,
                               .spent = spent == nullptr ? nullptr : &spent->cache};
  auto const attend = [&](int layer, view2d<float const> q, view2d<float const> k, view2d<float const> v,
                          view2d<float> out) {
    sequence.append_and_attend(layer, k, v, q, out, options, m.executor());
  };
  return m.forward(ids, attend, spent);
}

matrix forward_together(model const& m, std::span<token_id const> ids, engine const& cache,
                        std::span<engine_sequence* const> sequences) {
  require(ids.size() == sequences.size(), errc::bad_shape, ids.size(), " tokens, expected ", sequences.size(),
          ", one for each sequence");
  auto const attend = [&](int layer, view2d<float const> q, view2d<float const> k, view2d<float const> v,
                          view2d<float> out) {
    std::vector<attend_request> batch;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      sequences[i]->append(layer, k.middle_rows(i, 1), v.middle_rows(i, 1), m.executor());
      batch.push_back({.sequence = sequences[i],
                       .q = q.middle_rows(i, 1),
                       .out = out.middle_rows(i, 1),
                       .options = {.softmax_scale = m.config().softmax_scale}});
    }
    cache.attend(layer, batch, m.executor());
  };
  return m.forward(ids, attend);
}

}  // namespace kvquant::runtime
