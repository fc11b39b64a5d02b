#pragma once
/// \file
/// A Llama-family transformer: forward over a window with hooks at K, Q and V, and backward to K and V.

#include <Eigen/Core>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvquant/core/executor.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/rope/rope_config.hpp"
#include "runtime/gguf.hpp"

namespace kvquant::runtime {

using token_id = std::int32_t;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct model_config {
  std::string architecture;  ///< "llama" or "qwen2"
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
  bool tied_embeddings = false;
  bool biases = false;  ///< on the Q, K and V projections (qwen2)
  rope_config rope;

  int kv_channels() const { return kv_heads * head_dim; }
  int q_channels() const { return q_heads * head_dim; }
};

/// For query t, keys from `first_key(t)` on and values from `first_value(t)` on are read as they were before the hook
/// changed them (a full-precision window over the recent past).
struct exact_window {
  std::function<int(int)> first_key;
  std::function<int(int)> first_value;
};

/// Where a quantizer plugs in. Each call covers all T tokens of the window; what it writes is what attention reads.
/// Rows are tokens; a row holds kv_heads · head_dim channels (q_heads · head_dim for queries).
class kv_hook {
 public:
  virtual ~kv_hook() = default;
  virtual void queries_pre_rope(int /*layer*/, view2d<float> /*q*/) {}
  virtual void keys_pre_rope(int /*layer*/, view2d<float> /*k*/) {}
  virtual void keys_post_rope(int /*layer*/, view2d<float> /*k*/) {}
  virtual void values(int /*layer*/, view2d<float> /*v*/) {}
  virtual std::optional<exact_window> window() const { return std::nullopt; }
};

/// One layer's keys and values with the gradients of the mean cross-entropy. All [T, kv_channels].
struct kv_gradients {
  view2d<float const> k_pre_rope, k_post_rope, v;
  view2d<float const> dk_pre_rope, dk_post_rope, dv;
};

class model {
 public:
  /// Reads shapes and weights; weights stay in the mapping, in their own blocks, so `file` must outlive the model.
  /// Throws `unsupported` naming an architecture or feature that is missing, `bad_file` for missing or misshapen
  /// tensors, `bad_value` naming the tensor for NaN or infinite weights.
  model(gguf_file const& file, executor_ref executor);
  model(model&&) noexcept;
  ~model();

  model_config const& config() const;
  std::size_t weight_bytes() const;

  /// The final hidden states after the last norm, [T, hidden]. Positions are 0 … T−1. `ids` are checked.
  matrix forward(std::span<token_id const> ids, kv_hook* hook = nullptr) const;
  /// [rows, vocabulary] scores of hidden states [rows, hidden].
  void logits(view2d<float const> hidden, view2d<float> out) const;

  /// Un-quantized forward and backward of the mean cross-entropy of predictions 1 … T−1. `sink(layer, gradients)` is
  /// called once a layer, from the last to the first; the views are valid during the call. Keeps O(layers · T · hidden)
  /// floats. Returns the loss in nats.
  double loss_and_gradients(std::span<token_id const> ids,
                            std::function<void(int layer, kv_gradients const&)> const& sink) const;

 private:
  struct state;
  std::unique_ptr<state> state_;
};

/// −log p(target) in nats for each row of hidden states, computed in slabs so that [rows, vocabulary] never exists.
std::vector<double> negative_log_likelihood(model const& m, view2d<float const> hidden,
                                            std::span<token_id const> targets);

}  // namespace kvquant::runtime
