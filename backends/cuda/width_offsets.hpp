#pragma once
/// \file
/// What the kernels read beside pages whose channels have widths of their own, for the host and the device alike.

#include <cstddef>

#include "backends/cuda/quartets.hpp"
#include "kvquant/core/config.hpp"

namespace kvquant::cuda {

/// Levels are unsigned bytes around it.
inline constexpr int level_origin = 128;
/// Bytes become binary16 numbers as they are, of which this is one step.
inline constexpr double byte_step = 0x1p-24;

/// Where the tables of one KV head start, in bytes: quartets of keys and of values; 16 levels of each chunk; scales and
/// zeros of values, [head_dim / 16, 8] of four words for channels g and g + 8, twice each; which pair of a key, which
/// channel of a value is at a place. So far they are wanted in shared memory. Then what sums of values are corrected
/// by, [head_dim] `value_correction`.
struct width_offsets {
  int k_levels, v_levels, value_maps, pair_at, channel_at, corrections, end;

  KVQ_HD constexpr explicit width_offsets(int head_dim)
      : k_levels(static_cast<int>(sizeof(quartet)) * 2 * most_quartets),
        v_levels(k_levels + head_dim / chunk_of_channels * 16),
        value_maps(v_levels + head_dim / chunk_of_channels * 16),
        pair_at(value_maps + head_dim / 16 * 8 * 16),
        channel_at(pair_at + head_dim / 2),
        corrections((channel_at + head_dim + 15) / 16 * 16),
        end(corrections + head_dim * 8) {}
};

/// Scales and zeros are rounded to binary16. Over many tokens that is the same error again and again, where the values
/// themselves may cancel: Σ p v = factor · (Σ p v as rounded) + offset · Σ p.
struct value_correction {
  float factor, offset;
};

}  // namespace kvquant::cuda
