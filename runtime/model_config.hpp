#pragma once
/// \file
/// The hyperparameters of a Llama-family model, as GGUF metadata gives them.

#include <string>

#include "kvquant/quantize/spec.hpp"
#include "kvquant/rope/rope_config.hpp"
#include "runtime/gguf.hpp"

namespace kvquant::runtime {

/// What the gate of a feed-forward layer goes through. GELU in its tanh form.
enum class activation { silu, gelu };

struct model_config {
  std::string architecture;  ///< "llama", "qwen2" or "gemma3"
  std::string name;
  int layers = 0;
  int hidden = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int feed_forward = 0;
  int vocabulary = 0;
  int context = 0;  ///< tokens the model was trained for
  float rms_epsilon = 1e-5f;
  float softmax_scale = 0;  ///< of q · k; 0: 1 / sqrt(head_dim)
  float embedding_scale = 1;
  activation gate = activation::silu;
  bool qk_norm = false;     ///< every head of queries and keys is normed before RoPE
  bool post_norms = false;  ///< what attention and feed-forward add is normed as well
  bool tied_embeddings = false;
  rope_config rope;
  local_layers local;

  int kv_channels() const { return kv_heads * head_dim; }
  int q_channels() const { return q_heads * head_dim; }
};

/// What the library needs to know of a model.
inline model_shape shape_of(model_config const& config) {
  return {config.layers, config.q_heads, config.kv_heads, config.head_dim, config.rope, config.local};
}

/// Throws `unsupported` naming the architecture or feature that is missing, `bad_file` for what is not there or cannot
/// be.
model_config read_model_config(gguf_file const& file);

}  // namespace kvquant::runtime
