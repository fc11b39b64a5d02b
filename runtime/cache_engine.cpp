#include "runtime/cache_engine.hpp"

#include <array>
#include <utility>
#include <vector>

#include "backends/cpu/generic/backend.hpp"
#include "runtime/artifact_label.hpp"

namespace kvquant::runtime {

namespace {

using backends = type_list<cpu::generic::backend>;

template <class... B>
constexpr auto names_of(type_list<B...>) {
  return std::array{B::name...};
}
constexpr auto names = names_of(backends{});

}  // namespace

std::span<std::string_view const> backend_names() { return names; }

std::unique_ptr<engine> make_cache(std::filesystem::path const& artifact, std::string_view backend,
                                   model_config const& config, std::string const& model_hash,
                                   cache_options const& options) {
  auto made = make_engine<backends>(backend, artifact, options);
  require_made_for(artifact, made->info(), config, model_hash);
  return made;
}

std::unique_ptr<engine> make_exact_cache(model_config const& config, std::size_t max_tokens) {
  using unused = uniform<2>;  // nothing is quantized
  std::vector<float> const sensitivity(static_cast<std::size_t>(config.kv_channels()), 1.0f);
  artifact<spec<unused, unused>> it;
  it.info.spec = spec<unused, unused>::name();
  it.info.shape = shape_of(config);
  layer_artifact const layer{std::vector(sensitivity.size(), make_range(-1, 1)), {}, {}, sensitivity, sensitivity};
  it.layers.assign(static_cast<std::size_t>(config.layers), layer);
  return make_engine<cpu::generic::backend>(
      it, {.max_tokens = 0, .sinks = 0, .recent_pages = static_cast<int>(max_tokens / page_tokens)});
}

matrix forward(model const& m, std::span<token_id const> ids, engine_sequence& sequence) {
  attend_options const options{.window = static_cast<std::size_t>(m.config().sliding_window)};
  return m.forward(
      ids, [&](int layer, view2d<float const> q, view2d<float const> k, view2d<float const> v, view2d<float> out) {
        sequence.append_and_attend(layer, k, v, q, out, options, m.executor());
      });
}

}  // namespace kvquant::runtime
