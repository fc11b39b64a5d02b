#pragma once
/// \file
/// Artifacts and caches for the tiny models.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvquant/quantize/spec.hpp"
#include "runtime/cache_engine.hpp"
#include "test/runtime/model_pair.hpp"
#include "test/support/hand_made_artifact.hpp"

namespace kvquant::test {

/// An artifact whose key ranges fit the keys of random tokens.
template <Spec S>
artifact<S> artifact_of(runtime::model const& model, std::string const& model_hash, hand_made_options options = {}) {
  std::vector<float_matrix> keys;
  function_hook capture;
  capture.on_keys = [&](int, view2d<float> k) {
    keys.emplace_back(k.rows, k.cols).values.assign(k.data, k.data + k.rows * k.cols);
  };
  model.forward(random_ids(400, tiny_model::vocabulary, 99), &capture);
  options.shape = shape_of(model.config());
  auto it = hand_made_artifact<S>(options, keys);
  it.info.origin.model_name = model.config().name;
  it.info.origin.model_hash = model_hash;
  return it;
}
template <Spec S>
artifact<S> artifact_of(model_pair const& it, hand_made_options const& options = {}) {
  return artifact_of<S>(it.model, it.gguf.file().hash(), options);
}

/// Hidden states of tokens that go on a sequence, so many a call.
inline runtime::matrix forward_in_chunks(runtime::model const& model, std::span<runtime::token_id const> ids,
                                         engine_sequence& sequence, std::size_t chunk) {
  runtime::matrix hidden(static_cast<Eigen::Index>(ids.size()), model.config().hidden);
  for (std::size_t first = 0; first < ids.size(); first += chunk) {
    auto const piece = ids.subspan(first, std::min(chunk, ids.size() - first));
    hidden.middleRows(static_cast<Eigen::Index>(first), static_cast<Eigen::Index>(piece.size())) =
        runtime::forward(model, piece, sequence);
  }
  return hidden;
}

inline double relative_error(runtime::matrix const& found, runtime::matrix const& expected) {
  return relative_error(to_real(found), to_real(expected));
}

}  // namespace kvquant::test
