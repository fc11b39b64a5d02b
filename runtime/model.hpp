#pragma once
/// \file
/// A Llama-family transformer: forward over a window with hooks at K, Q and V, and backward to K and V.

#include <Eigen/Core>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "kvquant/core/executor.hpp"
#include "kvquant/core/view.hpp"
#include "runtime/attention.hpp"
#include "runtime/gguf.hpp"
#include "runtime/model_config.hpp"

namespace kvquant::runtime {

struct profile;

using token_id = std::int32_t;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

inline view2d<float> view_of(matrix& m) {
  return {m.data(), static_cast<std::size_t>(m.rows()), static_cast<std::size_t>(m.cols())};
}
inline view2d<float const> view_of(matrix const& m) {
  return {m.data(), static_cast<std::size_t>(m.rows()), static_cast<std::size_t>(m.cols())};
}

/// Where a quantizer plugs in. Each call covers all T tokens of the window; what it writes is what attention reads.
/// Calls of a layer come in the order below, on the thread that called `forward`. Rows are tokens; a row holds kv_heads
/// · head_dim channels (q_heads · head_dim for queries).
class kv_hook {
 public:
  virtual ~kv_hook() = default;
  /// Queries and keys before RoPE come after their norm, where a model has one.
  virtual void queries_pre_rope(int /*layer*/, view2d<float> /*q*/) {}
  virtual void keys_pre_rope(int /*layer*/, view2d<float> /*k*/) {}
  virtual void keys_post_rope(int /*layer*/, view2d<float> /*k*/) {}
  virtual void values(int /*layer*/, view2d<float> /*v*/) {}
  virtual std::optional<exact_window> window() const { return std::nullopt; }
};

/// Attention that keeps keys and values itself. For the tokens of one call: `q`, `k` before RoPE, `v`, and what
/// attention makes of them, `out`; rows are tokens, as for `kv_hook`. Positions, masks and scale are its own affair.
using attention_function = std::function<void(int layer, view2d<float const> q, view2d<float const> k,
                                              view2d<float const> v, view2d<float> out)>;

/// One layer's keys and values with the gradients of the mean cross-entropy. All [T, kv_channels].
struct kv_gradients {
  view2d<float const> k_pre_rope, k_post_rope, v;
  view2d<float const> dk_pre_rope, dk_post_rope, dv;
};
using gradient_sink = std::function<void(int layer, kv_gradients const&)>;

class model {
 public:
  /// Reads shapes and weights; weights stay in the mapping, in their own blocks, so `file` and whatever `executor`
  /// refers to must outlive the model. Throws `unsupported` naming an architecture or feature that is missing,
  /// `bad_file` for missing or misshapen tensors, `bad_value` naming the tensor for NaN or infinite weights.
  model(gguf_file const& file, executor_ref executor);
  model(model&&) noexcept;
  model& operator=(model&&) noexcept;
  ~model();

  model_config const& config() const;
  std::size_t weight_bytes() const;
  executor_ref executor() const;

  /// The hidden states after the last norm, [T, hidden]. Positions are 0 … T−1. Throws `bad_value` for ids outside the
  /// vocabulary.
  matrix forward(std::span<token_id const> ids, kv_hook* hook = nullptr) const;

  /// The same for tokens that go on a sequence which `attention` keeps. `spent`, if given, grows by the time of the
  /// products.
  matrix forward(std::span<token_id const> ids, attention_function const& attention, profile* spent = nullptr) const;

  /// Scores of hidden states: hidden [rows, hidden], out [rows, vocabulary]. `spent`, if given, grows by the time.
  void logits(view2d<float const> hidden, view2d<float> out, profile* spent = nullptr) const;

  /// Un-quantized forward, and backward of the mean cross-entropy of predictions 1 … T−1. `sink` is called once a
  /// layer, from the last to the first; its views are valid during the call. Keeps O(layers · T · hidden) floats.
  /// Returns the loss in nats.
  double loss_and_gradients(std::span<token_id const> ids, gradient_sink const& sink) const;

 public:
  struct state;  ///< the runtime's own

 private:
  std::unique_ptr<state> state_;
};

}  // namespace kvquant::runtime
