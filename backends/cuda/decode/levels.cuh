#pragma once
/// \file
/// From codes to levels: eight codes of a nibble word become four registers of two binary16 levels each.

#include "backends/cuda/arch/instructions.cuh"
#include "backends/cuda/kernel/params.hpp"

namespace kvquant::cuda {

using arch::word;

enum class side { k, v };

/// 2 and 3 bits: the levels' low and high bytes lie in two registers each, and a byte permute looks up four codes.
/// Every lane reads a copy of its own: registers of the warp, where the compiler would keep what is the same for all,
/// are no operands of permutes.
class register_levels {
 public:
  __device__ register_levels(word const* levels, std::byte*) {
    uint4 const* const mine = reinterpret_cast<uint4 const*>(levels) + threadIdx.x % warp_lanes;
    uint4 const k = mine[0], v = mine[warp_lanes];
    k_[0] = k.x, k_[1] = k.y, k_[2] = k.z, k_[3] = k.w;
    v_[0] = v.x, v_[1] = v.y, v_[2] = v.z, v_[3] = v.w;
  }

  template <side Side>
  __device__ __forceinline__ void decode(word codes, word (&out)[4]) const {
    word const(&bytes)[4] = Side == side::k ? k_ : v_;
    look_up(bytes, codes, out[0], out[1]);
    look_up(bytes, codes >> 16, out[2], out[3]);
  }

 private:
  static __device__ __forceinline__ void look_up(word const (&bytes)[4], word codes, word& a, word& b) {
    word const low = arch::permuted(bytes[0], bytes[1], codes), high = arch::permuted(bytes[2], bytes[3], codes);
    a = arch::permuted(low, high, 0x5140);
    b = arch::permuted(low, high, 0x7362);
  }
  word k_[4], v_[4];
};

/// 4 bits: a table of pairs of levels in shared memory, once for every lane, so that no two lanes meet in a bank:
/// [256 bytes of codes][{k, v}][32 lanes]. One permute makes the address, one load returns two levels.
class shared_levels {
 public:
  /// `table`: the start of the block's shared memory.
  __device__ shared_levels(word const* levels, std::byte* table) : lane_(threadIdx.x % warp_lanes * 4) {
    int const threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    int const lane = thread % warp_lanes;
    for (int done = 0; done < 2 * 256; done += threads) {  // threads: a power of 2
      int const first = done + thread - lane;
      word const mine = levels[done + thread];
#pragma unroll
      for (int i = 0; i < warp_lanes; i += 4) {  // eight lanes write a pair's copies
        int const from = i + lane / 8, side = first / 256, codes = first % 256 + from;
        word const pair = __shfl_sync(~0u, mine, from);
        reinterpret_cast<uint4*>(table)[(codes * 2 + side) * 8 + lane % 8] = make_uint4(pair, pair, pair, pair);
      }
    }
  }

  template <side Side>
  __device__ __forceinline__ void decode(word codes, word (&out)[4]) const {
    out[0] = look_up<Side>(arch::permuted(codes, lane_, 0x6604));
    out[1] = look_up<Side>(arch::permuted(codes, lane_, 0x6614));
    out[2] = look_up<Side>(arch::permuted(codes, lane_, 0x6624));
    out[3] = look_up<Side>(arch::permuted(codes, lane_, 0x6634));
  }

 private:
  template <side Side>
  static __device__ __forceinline__ word look_up(word offset) {
    extern __shared__ __align__(128) std::byte shared[];
    word out;
    asm("ld.shared.u32 %0,[%1];"
        : "=r"(out)
        : "r"(offset + arch::shared_address(shared) + (Side == side::k ? 0u : 128u)));
    return out;
  }
  word lane_;  // the lane's byte offset; its other bytes are 0
};

template <int Bits>
struct levels_for {
  using type = register_levels;
};
template <>
struct levels_for<4> {
  using type = shared_levels;
};

}  // namespace kvquant::cuda
