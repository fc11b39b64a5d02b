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
    for (int i = static_cast<int>(threadIdx.x); i < at.corrections / 16; i += static_cast<int>(blockDim.x))
      reinterpret_cast<uint4*>(table)[i] = reinterpret_cast<uint4 const*>(head)[i];
  }

  __device__ __forceinline__ quartet quartet_at(side of, int index) const {
    return reinterpret_cast<quartet const*>(shared_)[(of == side::k ? 0 : most_quartets) + index];
  }
  /// [16] bytes.
  __device__ __forceinline__ std::byte const* levels(side of, int chunk) const {
    return shared_ + (of == side::k ? at.k_levels : at.v_levels) + chunk * 16;
  }
  /// Twice the scale and the zero of the fragment's channel g, then of g + 8.
  __device__ __forceinline__ uint4 value_maps(int fragment) const {
    int const g = static_cast<int>(threadIdx.x) % warp_lanes / 4;
    return reinterpret_cast<uint4 const*>(shared_ + at.value_maps)[fragment * 8 + g];
  }
  __device__ std::uint8_t const* pair_at() const { return places(shared_ + at.pair_at); }
  __device__ std::uint8_t const* channel_at() const { return places(shared_ + at.channel_at); }
  /// By place.
  __device__ value_correction correction(int place) const {
    return reinterpret_cast<value_correction const*>(reinterpret_cast<std::byte const*>(global_) +
                                                     at.corrections)[place];
  }
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

/// A lane's cells of the quartets of a slab.
class lane_cells {
 public:
  /// `slab`: in shared memory.
  __device__ __forceinline__ explicit lane_cells(std::byte const* slab)
      : twos_(slab + threadIdx.x % warp_lanes * 4), ones_(slab + threadIdx.x % warp_lanes * 2) {}

  /// Cells `First` and the next of a quartet.
  template <int First>
  __device__ __forceinline__ word two(quartet it) const {
    return *reinterpret_cast<word const*>(twos_ + it.start + First * cell_bytes);
  }
  /// The last, where their number is odd.
  template <int Cell>
  __device__ __forceinline__ word one(quartet it) const {
    return *reinterpret_cast<std::uint16_t const*>(ones_ + it.start + Cell * cell_bytes);
  }

 private:
  std::byte const *twos_, *ones_;
};

/// The four codes of each of a quartet's chunks as nibbles: chunks 0 and 1, then 2 and 3, the first in the lower half.
/// See `plane_in`.
template <int Kind>
__device__ __forceinline__ uint2 unpack_quartet(lane_cells const& cells, quartet it) {
  word const ab = Kind == w1111 ? cells.one<0>(it) : cells.two<0>(it);
  word const c = cells_of(Kind) == 3 ? cells.one<2>(it) : 0;
  if constexpr (Kind == w4444) return {ab, cells.two<2>(it)};
  if constexpr (Kind == w4422) return {ab, (c & 0x3333u) | (c << 14 & 0x33330000u)};
  if constexpr (Kind == w4431) return {ab, (c & 0x7777u) | (c << 13 & 0x11110000u)};
  if constexpr (Kind == w4332)
    return {ab & 0x7777ffffu, (c & 0x7777u) | (ab >> 3 & 0x11110000u) | (c << 14 & 0x22220000u)};
  if constexpr (Kind == w3333)
    return {ab & 0x77777777u,
            (c & 0x7777u) | (ab << 13 & 0x11110000u) | (ab >> 2 & 0x22220000u) | (c << 15 & 0x44440000u)};
  if constexpr (Kind == w4211) return {ab & 0x3333ffffu, (ab >> 18 & 0x1111u) | (ab >> 3 & 0x11110000u)};
  if constexpr (Kind == w2222) return {ab & 0x33333333u, ab >> 2 & 0x33333333u};
  if constexpr (Kind == w3212) return {ab & 0x33337777u, (ab >> 3 & 0x1111u) | (ab >> 2 & 0x33330000u)};
  if constexpr (Kind == w3311) return {ab & 0x77777777u, ab >> 3 & 0x11111111u};
  if constexpr (Kind == w1111)
    return {(ab & 0x1111u) | (ab << 15 & 0x11110000u), (ab >> 2 & 0x1111u) | (ab << 13 & 0x11110000u)};
}

/// The bytes of four codes, the low nibbles, of `Width` bits.
template <int Width>
__device__ __forceinline__ word look_up(std::byte const* levels, word codes) {
  if constexpr (Width < 4) {
    uint2 const it = *reinterpret_cast<uint2 const*>(levels);
    return arch::permuted(it.x, it.y, codes);
  } else {
    uint4 const it = *reinterpret_cast<uint4 const*>(levels);
    word const low_three = codes & 0x7777u;
    word const below = arch::permuted(it.x, it.y, low_three), above = arch::permuted(it.z, it.w, low_three);
    return arch::permuted(below, above, 0x3210u | (codes >> 1 & 0x4444u));
  }
}

/// Levels are looked up when they are wanted: as binary16 numbers of `byte_step` each, of keys those of the scaled maps
/// to come, of values scaled already. Fragments come in order.
template <int HeadDim>
class slab_codes<by_width, HeadDim> {
 public:
  static constexpr int fragments = HeadDim / 16;
  using levels = width_tables<HeadDim>;

  /// `mine`: the lane's first 16 bytes of a slab.
  __device__ __forceinline__ slab_codes(std::byte const* mine, levels const& tables)
      : cells_(mine - threadIdx.x % warp_lanes * 16), tables_(tables) {}

  __device__ __forceinline__ void keys(int fragment, word (&out)[4]) {
    if (fragment % 2 == 0) read<side::k>(fragment / 2);
    word const a = bytes_[fragment % 2 * 2], b = bytes_[fragment % 2 * 2 + 1];
    spread(arch::permuted(a, b, 0x5140), out[0], out[1]);
    spread(arch::permuted(a, b, 0x7362), out[2], out[3]);
  }
  __device__ __forceinline__ void values(int fragment, word (&out)[4]) {
    if (fragment % 2 == 0) read<side::v>(fragment / 2);
    spread(bytes_[fragment % 2 * 2], out[0], out[2]);
    spread(bytes_[fragment % 2 * 2 + 1], out[1], out[3]);
    uint4 const map = tables_.value_maps(fragment);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      out[i] = as_word(__hfma2(as_half2(out[i]), as_half2(i % 2 ? map.z : map.x), as_half2(i % 2 ? map.w : map.y)));
  }

 private:
  template <side Of>
  __device__ __forceinline__ void read(int index) {
    quartet const it = tables_.quartet_at(Of, index);
    switch (it.kind) {
      case w4444: return read_kind<Of, w4444>(it, index);
      case w4422: return read_kind<Of, w4422>(it, index);
      case w4431: return read_kind<Of, w4431>(it, index);
      case w4332: return read_kind<Of, w4332>(it, index);
      case w3333: return read_kind<Of, w3333>(it, index);
      case w4211: return read_kind<Of, w4211>(it, index);
      case w2222: return read_kind<Of, w2222>(it, index);
      case w3212: return read_kind<Of, w3212>(it, index);
      case w3311: return read_kind<Of, w3311>(it, index);
      default: return read_kind<Of, w1111>(it, index);
    }
  }
  template <side Of, int Kind>
  __device__ __forceinline__ void read_kind(quartet it, int index) {
    uint2 const two = unpack_quartet<Kind>(cells_, it);
    std::byte const* const tables = tables_.levels(Of, index * quartet_chunks);
    bytes_[0] = look_up<width_in(Kind, 0)>(tables, width_in(Kind, 0) < 4 ? two.x & 0xffffu : two.x);
    bytes_[1] = look_up<width_in(Kind, 1)>(tables + 16, two.x >> 16);
    bytes_[2] = look_up<width_in(Kind, 2)>(tables + 32, width_in(Kind, 2) < 4 ? two.y & 0xffffu : two.y);
    bytes_[3] = look_up<width_in(Kind, 3)>(tables + 48, two.y >> 16);
  }
  /// Four bytes as four binary16 numbers.
  static __device__ __forceinline__ void spread(word bytes, word& a, word& b) {
    a = arch::permuted(bytes, 0, 0x4140);
    b = arch::permuted(bytes, 0, 0x4342);
  }

  lane_cells cells_;
  levels const& tables_;
  word bytes_[quartet_chunks];  // what the four codes of each chunk of the quartet at hand read as
};

}  // namespace kvquant::cuda
