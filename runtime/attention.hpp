#pragma once
/// \file
/// Causal attention over one window, forward and backward, heads in parallel.

#include <functional>

#include "kvquant/core/executor.hpp"
#include "kvquant/core/view.hpp"

namespace kvquant::runtime {

struct attention_shape {
  std::size_t q_heads, kv_heads, head_dim;
  float softmax_scale;
  std::size_t window = 0;  ///< keys that a query sees, the latest ones, its own included; 0: all

  std::size_t kv_head(std::size_t q_head) const { return q_head / (q_heads / kv_heads); }
};

/// For query t, keys from `first_key(t)` on and values from `first_value(t)` on are read as they were before the hook
/// changed them (full precision over the recent past). Neither function may fall with t.
struct exact_window {
  std::function<int(int)> first_key;
  std::function<int(int)> first_value;
};

/// What attention reads. All [T, heads · head_dim], after RoPE. `window` with `k_exact` and `v_exact`, or null.
struct attention_input {
  view2d<float const> q, k, v;
  exact_window const* window = nullptr;
  view2d<float const> k_exact, v_exact;
};

/// out [T, q_heads · head_dim].
void attend(attention_shape const& shape, attention_input const& in, view2d<float> out, executor_ref executor);

/// Gradients with respect to q, k and v (overwritten), given the one with respect to the output. Without a window.
void attend_backward(attention_shape const& shape, attention_input const& in, view2d<float const> d_out,
                     view2d<float> dq, view2d<float> dk, view2d<float> dv, executor_ref executor);

}  // namespace kvquant::runtime
