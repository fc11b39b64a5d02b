#pragma once
/// \file
/// The softmax that a warp meets slab by slab. Everything is in powers of 2.

#include <cuda_fp16.h>

#include "backends/cuda/agent/queries.cuh"
#include "backends/cuda/agent/shared_plan.hpp"
#include "backends/cuda/arch/instructions.cuh"

namespace kvquant::cuda {

/// Two columns of eight queries, 2t and 2t + 1; rows g and g + 8 of what is accumulated (see `arch::mma`).
///
/// The reference that scores are measured from is raised only when one exceeds it by 8, so that most slabs need one
/// vote and no rescaling; p stays below 2^8. Values' scales are divided by the largest one so far, likewise.
template <int HeadDim>
class warp_softmax {
 public:
  static constexpr int fragments = HeadDim / 16;

  /// `scores` of rows g, g + 8 by columns (see `arch::mma`), which become p. `scale`: the largest of what the lane has
  /// of the values' scales, twice, and of 1/512 of their residuals.
  __device__ __forceinline__ void step(float (&scores)[4], float scale) {
    float const largest[2] = {fmaxf(scores[0], scores[2]), fmaxf(scores[1], scores[3])};
    seen_[0] = fmaxf(seen_[0], largest[0]);
    seen_[1] = fmaxf(seen_[1], largest[1]);
    float const excess = fmaxf(largest[0] - reference_[0], largest[1] - reference_[1]);
    if (arch::any(excess > 8 || scale * inverse_unit_ > 32)) raise(scale);
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] = arch::exp2(scores[i] - reference_[i % 2]);
    sum_[0] += scores[0] + scores[2];
    sum_[1] += scores[1] + scores[3];
  }

  /// o += values · (p · scale); `scales`, `zeros`: twice those of the values of tokens g and g + 8.
  template <class Slab>
  __device__ __forceinline__ void add_values(Slab& slab, float const (&p)[4], float const (&scales)[2],
                                             float const (&zeros)[2]) {
    float const upper = scales[0] * inverse_unit_, lower = scales[1] * inverse_unit_;
    zero_sum_[0] += p[0] * zeros[0] + p[2] * zeros[1];
    zero_sum_[1] += p[1] * zeros[0] + p[3] * zeros[1];
    add(as_operand(p[0] * upper, p[1] * upper), as_operand(p[2] * lower, p[3] * lower),
        [&](int fragment, arch::word(&values)[4]) { slab.values(fragment, values); });
  }

  /// o += residuals · p. `fragment(i, a)` gives those of channels 16 i and following, times `residual_factor()`.
  template <class Fragment>
  __device__ __forceinline__ void add_residuals(float const (&p)[4], Fragment&& fragment) {
    add(as_operand(p[0], p[1]), as_operand(p[2], p[3]), fragment);
  }
  __device__ __forceinline__ float residual_factor() const { return 2 * inverse_unit_; }

  /// Of values as they were read until now: `correction(row of the output)`, see `value_correction`.
  template <class Correction>
  __device__ void correct(Correction&& correction) {
    float sums[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      sums[i] = residual_factor() * over_rows(sum_[i], [](float a, float b) { return a + b; });
#pragma unroll
    for (int i = 0; i < 2 * fragments; ++i) {
      auto const it = correction(i / 2 * 16 + i % 2 * 8 + static_cast<int>(threadIdx.x) % warp_lanes / 4);
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        float& o = o_[i / 2][i % 2 * 2 + column];
        o = it.factor * o + it.offset * sums[column];
      }
    }
  }

  /// Adds up what the warp's lanes have seen.
  __device__ void reduce() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum_[i] = over_rows(sum_[i], [](float a, float b) { return a + b; });
      zero_sum_[i] = over_rows(zero_sum_[i], [](float a, float b) { return a + b; });
      seen_[i] = over_rows(seen_[i], larger);
    }
  }

  /// After `reduce`: puts m, l and o of the warp's columns below `columns` at `records` [columns, head_dim + 2].
  __device__ void store(float* records, int columns) const {
    int const lane = static_cast<int>(threadIdx.x) % warp_lanes, column = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (column + i >= columns) continue;
      float* const to = records + (column + i) * partial_floats(HeadDim);
      float const factor = arch::exp2(reference_[i] - seen_[i]);  // to be measured from the largest score
      if (lane / 4 == 0) {
        to[0] = seen_[i];
        to[1] = sum_[i] * factor;
      }
#pragma unroll
      for (int fragment = 0; fragment < fragments; ++fragment) {
        to[2 + fragment * 16 + lane / 4] = (o_[fragment][i] * unit_ + zero_sum_[i]) * (factor / 2);
        to[2 + fragment * 16 + lane / 4 + 8] = (o_[fragment][i + 2] * unit_ + zero_sum_[i]) * (factor / 2);
      }
    }
  }

 private:
  static constexpr float nothing = -1e30f, smallest_unit = 1e-30f;  // a token of equal values has scale 0

  static __device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }

  template <class Combine>
  static __device__ __forceinline__ float over_rows(float x, Combine&& combine) {
#pragma unroll
    for (int lanes = 4; lanes < warp_lanes; lanes *= 2) x = combine(x, __shfl_xor_sync(~0u, x, lanes));
    return x;
  }

  /// Two numbers of a row, as the tensor cores want them of a column.
  static __device__ __forceinline__ arch::word as_operand(float a, float b) {
    return arch::transposed(as_word(__floats2half2_rn(a, b)));
  }
  template <class Fragment>
  __device__ __forceinline__ void add(arch::word b0, arch::word b1, Fragment&& fragment) {
#pragma unroll
    for (int i = 0; i < fragments; ++i) {
      arch::word a[4];
      fragment(i, a);
      arch::mma(o_[i], a, b0, b1);
    }
  }

  __device__ __forceinline__ void raise(float scale) {
    float factors[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float const highest = over_rows(seen_[i], larger);
      factors[i] = arch::exp2(reference_[i] - highest);
      reference_[i] = highest;
      sum_[i] *= factors[i];
      zero_sum_[i] *= factors[i];
    }
#pragma unroll
    for (int fragment = 0; fragment < fragments; ++fragment)
#pragma unroll
      for (int i = 0; i < 4; ++i) o_[fragment][i] *= factors[i % 2];
    widen(scale);
  }
  /// Makes the unit of o at least what some lane wants.
  __device__ __forceinline__ void widen(float wanted) {
    float const unit = fmaxf(fmaxf(unit_, warp_max(wanted)), smallest_unit), ratio = unit_ / unit;
    unit_ = unit;
    inverse_unit_ = 1 / unit;
#pragma unroll
    for (int fragment = 0; fragment < fragments; ++fragment)
#pragma unroll
      for (int i = 0; i < 4; ++i) o_[fragment][i] *= ratio;
  }

  float o_[fragments][4] = {};  // channels by columns, over half of the unit
  float reference_[2] = {nothing, nothing}, seen_[2] = {nothing, nothing};
  float sum_[2] = {}, zero_sum_[2] = {};  // of p, and of p times twice the values' zeros
  float unit_ = 0, inverse_unit_ = 1;
};

}  // namespace kvquant::cuda
