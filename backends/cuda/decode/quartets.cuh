#pragma once
/// \file
/// A lane's part of a slab whose channels have widths of their own, from shared memory to fragments.

#include <cuda_fp16.h>

#include <cstdint>

#include "backends/cuda/agent/queries.cuh"
#include "backends/cuda/decode/slab.cuh"
#include "backends/cuda/quartets.hpp"
#include "backends/cuda/width_offsets.hpp"

namespace kvquant::cuda {

/// The tables of a block's head.
template <int HeadDim>
class width_tables {
 public:
  static constexpr width_offsets at{HeadDim};

  /// `table`: the start of the block's shared memory.
  __device__ width_tables(word const* head, std::byte* table) : global_(head), shared_(table) {
    for (int i = static_cast<int>(threadIdx.x); i < at.end / 16; i += static_cast<int>(blockDim.x))
      reinterpret_cast<uint4*>(table)[i] = reinterpret_cast<uint4 const*>(head)[i];
  }

  __device__ __forceinline__ quartet quartet_at(side of, int index) const {
    return reinterpret_cast<quartet const*>(shared_)[(of == side::k ? 0 : most_quartets) + index];
  }
  __device__ __forceinline__ uint4 levels(side of, int chunk) const {
    return reinterpret_cast<uint4 const*>(shared_ + (of == side::k ? at.k_levels : at.v_levels))[chunk];
  }
  /// Twice the scale and the zero of the fragment's channel g, then of g + 8.
  __device__ __forceinline__ uint4 value_maps(int fragment) const {
    int const g = static_cast<int>(threadIdx.x) % warp_lanes / 4;
    return reinterpret_cast<uint4 const*>(shared_ + at.value_maps)[fragment * 8 + g];
  }
  __device__ std::uint8_t const* pair_at() const { return places(shared_ + at.pair_at); }
  __device__ std::uint8_t const* channel_at() const { return places(shared_ + at.channel_at); }
  /// When shared memory has become something else.
  __device__ int channel_of(int place) const {
    return places(reinterpret_cast<std::byte const*>(global_) + at.channel_at)[place];
  }

 private:
  static __device__ std::uint8_t const* places(std::byte const* from) {
    return reinterpret_cast<std::uint8_t const*>(from);
  }
  word const* global_;
  std::byte const* shared_;
};

/// The four codes of each of a quartet's chunks as nibbles: chunks 0 and 1, then 2 and 3, the first in the lower half.
/// `cells`: the warp's, in shared memory. See `plane_in`.
__device__ __forceinline__ uint2 unpack_quartet(int kind, std::byte const* cells) {
  int const lane = static_cast<int>(threadIdx.x) % warp_lanes;
  auto const two = [&] { return reinterpret_cast<word const*>(cells)[lane]; };
  auto const one = [&](int cell) {
    return word{reinterpret_cast<std::uint16_t const*>(cells + cell * cell_bytes)[lane]};
  };
  switch (kind) {
    case w4444: return reinterpret_cast<uint2 const*>(cells)[lane];
    case w4422: {
      word const c = one(2);
      return {two(), (c & 0x3333u) | (c << 14 & 0x33330000u)};
    }
    case w4431: {
      word const c = one(2);
      return {two(), (c & 0x7777u) | (c << 13 & 0x11110000u)};
    }
    case w4332: {
      word const ab = two(), c = one(2);
      return {ab & 0x7777ffffu, (c & 0x7777u) | (ab >> 3 & 0x11110000u) | (c << 14 & 0x22220000u)};
    }
    case w3333: {
      word const ab = two(), c = one(2);
      return {ab & 0x77777777u,
              (c & 0x7777u) | (ab << 13 & 0x11110000u) | (ab >> 2 & 0x22220000u) | (c << 15 & 0x44440000u)};
    }
    case w4211: {
      word const ab = two();
      return {ab & 0x3333ffffu, (ab >> 18 & 0x1111u) | (ab >> 3 & 0x11110000u)};
    }
    case w2222: {
      word const ab = two();
      return {ab & 0x33333333u, ab >> 2 & 0x33333333u};
    }
    case w3212: {
      word const ab = two();
      return {ab & 0x33337777u, (ab >> 3 & 0x1111u) | (ab >> 2 & 0x33330000u)};
    }
    case w3311: {
      word const ab = two();
      return {ab & 0x77777777u, ab >> 3 & 0x11111111u};
    }
    default: {
      word const a = one(0);
      return {(a & 0x1111u) | (a << 15 & 0x11110000u), (a >> 2 & 0x1111u) | (a << 13 & 0x11110000u)};
    }
  }
}

/// Whether one of a quartet's chunks has 16 levels.
__device__ __forceinline__ bool is_wide(int kind, int chunk) {
  constexpr int wide[] = {1 << w4444 | 1 << w4422 | 1 << w4431 | 1 << w4332 | 1 << w4211,
                          1 << w4444 | 1 << w4422 | 1 << w4431, 1 << w4444, 1 << w4444};
  return (wide[chunk] >> kind & 1) != 0;
}

/// The bytes of four codes, `wide` ones of 16 levels or of 8 at most.
__device__ __forceinline__ word look_up(uint4 levels, word codes, bool wide) {
  if (!wide) return arch::permuted(levels.x, levels.y, codes);
  word const low_three = codes & 0x7777u;
  word const below = arch::permuted(levels.x, levels.y, low_three),
             above = arch::permuted(levels.z, levels.w, low_three);
  return arch::permuted(below, above, 0x3210u | (codes >> 1 & 0x4444u));
}

/// Levels are looked up when they are wanted: as binary16 numbers of `byte_step` each, of keys those of the scaled maps
/// to come, of values scaled already.
template <int HeadDim>
class slab_codes<by_width, HeadDim> {
 public:
  static constexpr int fragments = HeadDim / 16;
  using levels = width_tables<HeadDim>;

  /// `mine`: the lane's first 16 bytes of a slab.
  __device__ __forceinline__ slab_codes(std::byte const* mine, levels const& tables)
      : slab_(mine - threadIdx.x % warp_lanes * 16), tables_(tables) {}

  __device__ __forceinline__ void keys(int fragment, word (&out)[4]) {
    word bytes[2];
    look_up_fragment(side::k, fragment, bytes);
    word const rows = arch::permuted(bytes[0], bytes[1], 0x5140), seconds = arch::permuted(bytes[0], bytes[1], 0x7362);
    spread(rows, out[0], out[1]);
    spread(seconds, out[2], out[3]);
  }
  __device__ __forceinline__ void values(int fragment, word (&out)[4]) {
    word bytes[2];
    look_up_fragment(side::v, fragment, bytes);
    spread(bytes[0], out[0], out[2]);
    spread(bytes[1], out[1], out[3]);
    uint4 const map = tables_.value_maps(fragment);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      out[i] = as_word(__hfma2(as_half2(out[i]), as_half2(i % 2 ? map.z : map.x), as_half2(i % 2 ? map.w : map.y)));
  }

 private:
  /// Fragments come in order.
  __device__ __forceinline__ void look_up_fragment(side of, int fragment, word (&bytes)[2]) {
    if (fragment % 2 == 0) {
      quartet const it = tables_.quartet_at(of, fragment / 2);
      kind_ = it.kind;
      nibbles_ = unpack_quartet(kind_, slab_ + it.start * cell_bytes);
    }
    word const two = fragment % 2 == 0 ? nibbles_.x : nibbles_.y;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      bytes[half] = look_up(tables_.levels(of, fragment * 2 + half), half == 0 ? two & 0xffffu : two >> 16,
                            is_wide(kind_, fragment % 2 * 2 + half));
  }
  /// Four bytes as four binary16 numbers.
  static __device__ __forceinline__ void spread(word bytes, word& a, word& b) {
    a = arch::permuted(bytes, 0, 0x4140);
    b = arch::permuted(bytes, 0, 0x4342);
  }

  std::byte const* slab_;
  levels const& tables_;
  int kind_;       // of the quartet at hand,
  uint2 nibbles_;  // and its codes
};

}  // namespace kvquant::cuda
