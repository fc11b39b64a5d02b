#pragma once
/// \file
/// A lane's part of a slab, from shared memory to the fragments of tensor-core instructions.

#include "backends/cuda/decode/levels.cuh"

namespace kvquant::cuda {

/// `Bits` codes: what a lane has of keys and values, as nibble words.
template <int Bits, int HeadDim>
class slab_codes {
 public:
  static constexpr int fragments = HeadDim / 16;  // of each side
  using levels = typename levels_for<Bits>::type;

  /// `mine`: the lane's first 16 bytes of a slab.
  __device__ __forceinline__ slab_codes(std::byte const* mine, levels const& table) : table_(table) {
    word packed[words];
    load(mine, packed);
    unpack(packed);
  }

  __device__ __forceinline__ void keys(int fragment, word (&out)[4]) const {
    table_.template decode<side::k>(nibbles_[fragment], out);
  }
  __device__ __forceinline__ void values(int fragment, word (&out)[4]) const {
    table_.template decode<side::v>(nibbles_[fragments + fragment], out);
  }

 private:
  static constexpr int words = slab_words(Bits, HeadDim), chunks = words / 4, nibble_words = 2 * fragments;

  static __device__ __forceinline__ void load(std::byte const* mine, word (&packed)[words]) {
#pragma unroll
    for (int chunk = 0; chunk < chunks; ++chunk)
      arch::load_four(reinterpret_cast<uint4 const*>(mine) + chunk * warp_lanes, packed + 4 * chunk);
#pragma unroll
    for (int i = 4 * chunks; i < words; ++i)
      packed[i] = reinterpret_cast<word const*>(mine - threadIdx.x % warp_lanes * 12)[i * warp_lanes];
  }

  __device__ __forceinline__ void unpack(word const (&packed)[words]) {
    if constexpr (Bits == 4) {
#pragma unroll
      for (int i = 0; i < nibble_words; ++i) nibbles_[i] = packed[i];
    } else if constexpr (Bits == 2) {
#pragma unroll
      for (int i = 0; i < words; ++i) {
        nibbles_[2 * i] = packed[i] & 0x33333333u;
        nibbles_[2 * i + 1] = packed[i] >> 2 & 0x33333333u;
      }
    } else {
      constexpr int fours = nibble_words / 4;
#pragma unroll
      for (int four = 0; four < fours; ++four) {
        word const a = packed[3 * four], b = packed[3 * four + 1], c = packed[3 * four + 2];
        nibbles_[4 * four] = a & 0x77777777u;
        nibbles_[4 * four + 1] = b & 0x77777777u;
        nibbles_[4 * four + 2] = c & 0x77777777u;
        nibbles_[4 * four + 3] = (a >> 3 & 0x11111111u) | (b >> 2 & 0x22222222u) | (c >> 1 & 0x44444444u);
      }
#pragma unroll
      for (int i = 4 * fours; i < nibble_words; ++i) nibbles_[i] = packed[i - fours];
    }
  }

  levels const& table_;
  word nibbles_[nibble_words];
};

/// binary16 numbers as they are: a chunk of 16 bytes is a fragment. They are read when they are wanted.
template <int HeadDim>
class slab_codes<16, HeadDim> {
 public:
  static constexpr int fragments = HeadDim / 16;
  struct levels {
    __device__ levels(word const*, std::byte*) {}
  };

  __device__ __forceinline__ slab_codes(std::byte const* mine, levels const&)
      : chunks_(reinterpret_cast<uint4 const*>(mine)) {}

  __device__ __forceinline__ void keys(int fragment, word (&out)[4]) const { read(fragment, out); }
  __device__ __forceinline__ void values(int fragment, word (&out)[4]) const { read(fragments + fragment, out); }

 private:
  __device__ __forceinline__ void read(int chunk, word (&out)[4]) const {
    arch::load_four(chunks_ + chunk * warp_lanes, out);
  }
  uint4 const* chunks_;
};

}  // namespace kvquant::cuda
