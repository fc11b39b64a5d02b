#pragma once
/// \file
/// What `model`'s forward and backward share. Private to the runtime.

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "kvquant/rope/rope.hpp"
#include "runtime/linear.hpp"
#include "runtime/model.hpp"

namespace kvquant::runtime {

struct layer_weights {
  std::vector<float> attention_norm, feed_forward_norm;  // [hidden]
  gguf_tensor const *q, *k, *v, *attention_out, *gate, *up, *down;
  std::vector<float> q_bias, k_bias, v_bias;                       // [channels], or empty
  std::vector<float> q_norm, k_norm;                               // [head_dim], or empty
  std::vector<float> attention_post_norm, feed_forward_post_norm;  // [hidden], or empty
};

/// The angles of a window's positions, for the layers that see all tokens and for the local ones.
struct window_angles {
  rope_angle_table<float> all, local;
};

struct model::state {
  model_config config;
  model_shape shape;
  executor_ref executor;
  rope rotation;
  gguf_tensor const* embedding;
  gguf_tensor const* output;
  std::vector<float> output_norm;  // [hidden]
  std::vector<layer_weights> layers;
  std::size_t weight_bytes = 0;

  attention_shape attention(int layer) const;
  void check(std::span<token_id const> ids) const;
  window_angles angles(std::size_t tokens) const;
  rope_angle_table<float> const& angles_of(int layer, window_angles const& of) const {
    return shape.is_local(layer) ? of.local : of.all;
  }

  /// Calls `f(token)` for every token, in parallel.
  template <class F>
  void for_tokens(std::size_t tokens, F&& f) const {
    constexpr std::size_t block = 16;
    executor.parallel_for((tokens + block - 1) / block, [&](std::size_t task, int) {
      for (std::size_t token = task * block; token < std::min(tokens, (task + 1) * block); ++token) f(token);
    });
  }

  void embed(std::span<token_id const> ids, view2d<float> out) const;
  void norm(view2d<float const> x, std::span<float const> weight, view2d<float> out) const;
  /// Norms every head of every row in place, if there is a weight.
  void norm_heads(view2d<float> x, std::span<float const> weight) const;
  /// gate = activation(gate) · up, and the gradients with respect to both, which they replace.
  void gate(view2d<float> gate, view2d<float const> up) const;
  void gate_backward(view2d<float> gate, view2d<float> up, view2d<float const> d_out) const;
  /// out = x · Wᵀ + bias.
  void project(view2d<float const> x, gguf_tensor const& weight, std::span<float const> bias, view2d<float> out,
               weight_scratch& scratch) const;
  /// Every head of every row turns as at its row's position, or back.
  enum class direction { forward, back };
  void rotate(view2d<float> x, rope_angle_table<float> const& angles, direction way) const;
};

}  // namespace kvquant::runtime
