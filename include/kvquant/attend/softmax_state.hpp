#pragma once
/// \file
/// The state of a softmax that is met piece by piece, and how two pieces become one (Milakov and Gimelshein,
/// arXiv 1805.02867): pages, splits, threads, devices and machines all merge so.

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

namespace kvquant {

/// m = the largest score so far, l = Σ exp(score − m). Beside it lies o = Σ exp(score − m) · value, not divided by l.
struct softmax_state {
  /// The largest score so far; −∞ before the first.
  float m = -std::numeric_limits<float>::infinity();
  float l = 0;  ///< Σ exp(score − m)

  /// Whether no score was added.
  bool empty() const { return l == 0; }
};

/// What both pieces are scaled by when they are put together.
struct softmax_merge {
  softmax_state result;            ///< of both together
  float scale_a = 1, scale_b = 1;  ///< what the parts' weighted sums of values are multiplied with
};

/// Exact for an empty piece: the other is unchanged, bit for bit.
inline softmax_merge merge(softmax_state a, softmax_state b) {
  if (b.empty()) return {a, 1, 0};
  if (a.empty()) return {b, 0, 1};
  softmax_merge out;
  out.result.m = a.m > b.m ? a.m : b.m;
  out.scale_a = std::exp(a.m - out.result.m);
  out.scale_b = std::exp(b.m - out.result.m);
  out.result.l = a.l * out.scale_a + b.l * out.scale_b;
  return out;
}

/// Puts piece b behind piece a. `a_out`, `b_out`: o of each, [head_dim].
inline void merge_into(softmax_state& a, std::span<float> a_out, softmax_state b, std::span<float const> b_out) {
  auto const [result, scale_a, scale_b] = merge(a, b);
  a = result;
  if (scale_b == 0) return;
  for (std::size_t i = 0; i < a_out.size(); ++i) {
    a_out[i] = scale_a == 0 ? b_out[i] * scale_b : a_out[i] * scale_a + b_out[i] * scale_b;
  }
}

}  // namespace kvquant
