#pragma once
/// \file
/// Sparse elements of a slab, made dense: no atomics, no order of sums that varies, and nothing that depends on how
/// many queries there are.

#include <cuda_fp16.h>

#include "backends/cuda/agent/shared_plan.hpp"
#include "backends/cuda/arch/instructions.cuh"

namespace kvquant::cuda {

using arch::word;

/// Where a page's slots are; looked up when they are asked for.
struct page_slots {
  std::uint32_t const* id;
  std::byte const* head;  ///< of the KV head in the first block
  std::uint32_t block_bytes, offsets[2];

  __device__ __forceinline__ std::byte const* find(int side) const {
    return head + static_cast<std::size_t>(*id) * block_bytes + offsets[side];
  }
};

/// A slab's slots of keys (side 0) and of values (1). The lanes take them in turn; a lane has the first of its own at
/// hand.
template <int Staged>
class slab_slots {
 public:
  /// `staged`: the lane's first, in shared memory, sides in turn, zeros where there are none; `runs`: of each side, as
  /// words of a `slot_run`; `more`: there are more of a side than are staged.
  __device__ __forceinline__ slab_slots(word const* staged, word const* runs, bool more, page_slots const& page)
      : runs_(runs), more_(more), page_(page) {
#pragma unroll
    for (int i = 0; i < 2 * rounds; ++i) mine_[i] = staged[i];
  }

  /// Of a side whose run is `run`.
  static __device__ __forceinline__ bool are_more(word run) { return run > (Staged << 16 | 0xffffu); }

  /// `f(place, residual)` for the lane's slots of a side; without those whose residual is 0.
  template <int Side, class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#pragma unroll
    for (int i = Side; i < 2 * rounds; i += 2) visit(mine_[i], f);
    if (!more_) return;
    word const run = runs_[Side], count = run >> 16;
    word const* const all = reinterpret_cast<word const*>(page_.find(Side) + (run & 0xffffu));
#pragma unroll 1
    for (word i = Staged; arch::any(i < count); i += warp_lanes) visit(i + lane() < count ? all[i + lane()] : 0, f);
  }

  /// Of the lane's.
  template <int Side>
  __device__ __forceinline__ float largest_residual() const {
    float largest = 0;
    for_each<Side>([&](word, float residual) { largest = fmaxf(largest, fabsf(residual)); });
    return largest;
  }

 private:
  static_assert(sizeof(fragment_slot) == sizeof(word));
  static constexpr int rounds = Staged / warp_lanes;

  static __device__ __forceinline__ word lane() { return threadIdx.x % warp_lanes; }
  template <class F>
  static __device__ __forceinline__ void visit(word slot, F&& f) {
    if (slot > 0xffffu) f(slot & 0xffffu, __half2float(__ushort_as_half(static_cast<unsigned short>(slot >> 16))));
  }

  word const* runs_;
  bool more_;
  page_slots page_;
  word mine_[2 * rounds];
};

/// A warp's buffer of one side of a slab, as fragments of tensor-core instructions: zeros but for the residuals that
/// are in it between `put` and `clear`. The warp is to be synchronised between all three and `read`.
class residual_buffer {
 public:
  /// `buffer`: [fragments][32 lanes] of 16 bytes.
  __device__ residual_buffer(std::byte* buffer, int fragments)
      : places_(reinterpret_cast<half*>(buffer)), mine_(reinterpret_cast<uint4*>(buffer) + threadIdx.x % warp_lanes) {
    for (int i = 0; i < fragments; ++i) mine_[i * warp_lanes] = {};
  }

  /// residual · factor, within binary16.
  template <int Side, class Slots>
  __device__ __forceinline__ void put(Slots const& slots, float factor) const {
    constexpr float largest = 60000;  // a key's is turned yet, by halved angles, with its pair's other
    slots.template for_each<Side>([&](word place, float residual) {
      places_[place] = __float2half_rn(fminf(fmaxf(residual * factor, -largest), largest));
    });
  }
  template <int Side, class Slots>
  __device__ __forceinline__ void clear(Slots const& slots) const {
    slots.template for_each<Side>([&](word place, float) { places_[place] = __ushort_as_half(0); });
  }
  __device__ __forceinline__ void read(int fragment, word (&out)[4]) const {
    arch::load_four(mine_ + fragment * warp_lanes, out);
  }

 private:
  half* places_;
  uint4* mine_;
};

}  // namespace kvquant::cuda
