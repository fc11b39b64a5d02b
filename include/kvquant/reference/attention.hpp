#pragma once
/// \file
/// What attention over a cache means.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/quantize/spec.hpp"
#include "kvquant/reference/matrix.hpp"
#include "kvquant/reference/quantize.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant::reference {

/// What attention gives, with what is needed to merge it with that over other tokens.
struct attention_result {
  matrix out;        ///< [queries, q_heads · head_dim]
  matrix score_max;  ///< [queries, q_heads]: m, the largest scaled score
  matrix score_sum;  ///< [queries, q_heads]: l = Σ exp(score − m)
};

/// Rotates every head of every row; row i stands at `positions[i]`.
inline matrix rotate_rows(matrix x, rope const& rotation, int head_dim, std::span<std::int64_t const> positions) {
  for (Eigen::Index t = 0; t < x.rows(); ++t)
    for (Eigen::Index head = 0; head < x.cols() / head_dim; ++head)
      rotation.rotate(std::span(x.row(t).data() + head * head_dim, static_cast<std::size_t>(head_dim)),
                      positions[static_cast<std::size_t>(t)]);
  return x;
}

/// A sliding window: a query sees `window` latest keys, its own position included, and the first `sinks`. 0: all.
struct sliding_window {
  std::int64_t window = 0, sinks = 0;  ///< in tokens

  /// Whether the key at a position is not seen from another.
  bool hides(std::int64_t key, std::int64_t query) const {
    return window != 0 && key >= sinks && key <= query - window;
  }
};

/// Causal attention. `q` [queries, q_heads · head_dim] at `q_positions`, `k` and `v` [tokens, kv_heads · head_dim] at
/// `k_positions`, queries and keys before RoPE. A query sees the keys whose position is not after its own; query head h
/// reads KV head h · kv_heads / q_heads. `softmax_scale` is usually 1 / sqrt(head_dim). `layer` decides on rotation and
/// on the window of the model's own, which hides sinks as well.
inline attention_result attention(matrix const& q, matrix const& k, matrix const& v, model_shape const& shape,
                                  double softmax_scale, std::span<std::int64_t const> q_positions,
                                  std::span<std::int64_t const> k_positions, sliding_window const& window = {},
                                  int layer = 0) {
  validate(shape);
  sliding_window const own{.window = static_cast<std::int64_t>(shape.window_of(layer))};
  Eigen::Index const d = shape.head_dim, group = shape.q_heads / shape.kv_heads;
  require(
      q.cols() == shape.q_heads * d && k.cols() == shape.kv_heads * d && v.cols() == k.cols() && v.rows() == k.rows(),
      errc::bad_shape, "reference attention: q ", q.rows(), " x ", q.cols(), ", k ", k.rows(), " x ", k.cols(), ", v ",
      v.rows(), " x ", v.cols(), " do not fit ", shape.q_heads, " query heads on ", shape.kv_heads, " KV heads x ", d);
  require(q_positions.size() == static_cast<std::size_t>(q.rows()) &&
              k_positions.size() == static_cast<std::size_t>(k.rows()),
          errc::bad_shape, "reference attention: ", q_positions.size(), " and ", k_positions.size(), " positions for ",
          q.rows(), " queries and ", k.rows(), " keys");
  rope const rotation(shape.rope_of(layer), shape.head_dim);
  matrix const q_rotated = rotate_rows(q, rotation, shape.head_dim, q_positions);
  matrix const k_rotated = rotate_rows(k, rotation, shape.head_dim, k_positions);
  attention_result result{matrix::Zero(q.rows(), q.cols()), matrix(q.rows(), shape.q_heads),
                          matrix(q.rows(), shape.q_heads)};
  for (Eigen::Index t = 0; t < q.rows(); ++t)
    for (Eigen::Index head = 0; head < shape.q_heads; ++head) {
      Eigen::Index const kv_head = head / group;
      vector scores =
          softmax_scale * (k_rotated.middleCols(kv_head * d, d) * q_rotated.row(t).segment(head * d, d).transpose());
      std::int64_t const position = q_positions[static_cast<std::size_t>(t)];
      for (Eigen::Index j = 0; j < scores.size(); ++j) {
        std::int64_t const key = k_positions[static_cast<std::size_t>(j)];
        if (key > position || window.hides(key, position) || own.hides(key, position))
          scores(j) = -std::numeric_limits<double>::infinity();
      }
      double const m = scores.size() > 0 ? scores.maxCoeff() : -std::numeric_limits<double>::infinity();
      require(std::isfinite(m), errc::bad_value, "reference attention: query ", t, " sees no key with a finite score");
      vector const p = (scores.array() - m).exp();
      result.score_max(t, head) = m;
      result.score_sum(t, head) = p.sum();
      result.out.row(t).segment(head * d, d) = p.transpose() * v.middleCols(kv_head * d, d) / p.sum();
    }
  return result;
}

/// The same over what a cache holds: both sides decoded, outliers added, the first `sinks` tokens exact.
inline attention_result attention_over_codes(matrix const& q, matrix const& k, coded_matrix const& k_coded,
                                             matrix const& v, coded_matrix const& v_coded, int sinks,
                                             model_shape const& shape, double softmax_scale,
                                             std::span<std::int64_t const> q_positions,
                                             std::span<std::int64_t const> k_positions) {
  return attention(q, with_sinks(k, k_coded, sinks), with_sinks(v, v_coded, sinks), shape, softmax_scale, q_positions,
                   k_positions);
}

}  // namespace kvquant::reference
