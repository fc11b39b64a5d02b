#pragma once
/// \file
/// The sizes of models: those that are known by name, and those of files.

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "kvquant/quantize/spec.hpp"

namespace kvquant::plan {

/// A decoder of the Llama family.
struct model_facts {
  std::string name;
  model_shape shape;
  int hidden = 0, feed_forward = 0, vocabulary = 0;
  bool tied_embeddings = false;  ///< scores come from the table of embeddings
  bool qkv_biases = false;
  bool head_norms = false;  ///< queries and keys are normed head by head
  bool post_norms = false;  ///< what attention and feed-forward add is normed as well

  std::size_t embedding_parameters() const {
    return static_cast<std::size_t>(vocabulary) * static_cast<std::size_t>(hidden);
  }
  std::size_t parameters() const;
};

std::span<model_facts const> known_models();
/// Throws `bad_value` naming those that are known.
model_facts const& find_model(std::string_view name);

}  // namespace kvquant::plan
