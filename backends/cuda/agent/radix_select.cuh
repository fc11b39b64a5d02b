#pragma once
/// \file
/// The n-th largest of many numbers, by all threads of a block.

#include <cstdint>

#include "backends/cuda/slab_shape.hpp"

namespace kvquant::cuda {

/// How sure `radix_select::nth_largest` is to be.
enum class selected { value, bound };

/// Eight bits at a time from the top, counted in shared memory. The same numbers give the same result: counts do not
/// depend on the order of their additions.
class radix_select {
 public:
  struct storage {
    std::uint32_t counts[256];
    std::uint32_t digit, left, of_digit;
    std::uint32_t spare;  ///< written too: compilers read the four at once
  };
  __device__ explicit radix_select(storage& it) : it_(it) {}

  /// The `rank`-th largest, from 1, of `key(0)` … `key(n − 1)`; or, as a bound, some number that just `rank` of them
  /// reach, if they all differ.
  template <class Word, class Key>
  __device__ Word nth_largest(int n, std::uint32_t rank, selected what, Key&& key) {
    Word found = 0;
    for (int shift = 8 * static_cast<int>(sizeof(Word)) - 8; shift >= 0; shift -= 8) {
      count(n, [&](int i, auto&& add) {
        Word const it = key(i);
        if (it >> shift >> 8 == found >> shift >> 8) add(static_cast<std::uint32_t>(it >> shift & 255));
      });
      pick(rank);
      found |= static_cast<Word>(static_cast<Word>(it_.digit) << shift);
      rank = it_.left;
      if (what == selected::bound && it_.of_digit == rank) break;
    }
    return found;
  }

 private:
  template <class Each>
  __device__ void count(int n, Each&& each) {
    __syncthreads();
    for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) it_.counts[i] = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
      each(i, [&](std::uint32_t digit) { atomicAdd(&it_.counts[digit], 1u); });
    __syncthreads();
  }

  /// The digit that holds the `rank`-th from the top, and which it is of those.
  __device__ void pick(std::uint32_t rank) {
    if (threadIdx.x < warp_lanes) {
      std::uint32_t const top = 255 - 8 * threadIdx.x;
      std::uint32_t sum = 0;
      for (std::uint32_t i = 0; i < 8; ++i) sum += it_.counts[top - i];
      std::uint32_t reached = sum;
      for (unsigned step = 1; step < warp_lanes; step *= 2) {
        std::uint32_t const above = __shfl_up_sync(~0u, reached, step);
        if (threadIdx.x >= step) reached += above;
      }
      std::uint32_t before = reached - sum;
      if (before < rank && rank <= reached) {
        std::uint32_t digit = top;
        for (; before + it_.counts[digit] < rank; --digit) before += it_.counts[digit];
        it_.digit = digit;
        it_.left = rank - before;
        it_.of_digit = it_.counts[digit];
        it_.spare = 0;
      }
    }
    __syncthreads();
  }

  storage& it_;
};

}  // namespace kvquant::cuda
