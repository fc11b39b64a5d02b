#pragma once
/// \file
/// A warp's slabs on their way from the pages to shared memory, a few at a time.

#include "backends/cuda/agent/shared_plan.hpp"
#include "backends/cuda/arch/instructions.cuh"

namespace kvquant::cuda {

/// What has arrived of one slab.
struct staged_slab {
  std::byte const* codes;                ///< in shared memory; ranges and slots behind them
  fragment_slot const *k, *v;            ///< in shared memory: the first `staged_slots()` of each side
  fragment_slot const *page_k, *page_v;  ///< all of them, in the page
  int k_count = 0, v_count = 0;
};

/// The warp reads its slab of every `stride`-th page. What a copy needs to know is loaded slabs ahead of it: the id of
/// a page two, where its slots are one.
template <attend_config Config>
class slab_ring {
 public:
  __device__ slab_ring(attend_params const& params, token_run const& run, int kv_head, int first, int stride, int slab,
                       std::byte* stages)
      : params_(params),
        ids_(run.pages + run.first_tile + first),
        stride_(stride),
        slab_(slab),
        count_(run.tiles > first ? (run.tiles - first + stride - 1) / stride : 0),
        head_(params.slab + static_cast<std::size_t>(kv_head) * params.page_bytes),
        block_bytes_(static_cast<std::size_t>(params.model.kv_heads) * params.page_bytes),
        stages_(stages) {
    ids_ahead_[0] = id(0);
    ids_ahead_[1] = id(1);
    next_bounds_ = bounds_of(ids_ahead_[0]);
#pragma unroll
    for (int i = 0; i < Config.stages() - 1; ++i) issue(i, i, i);
  }

  /// The warp's next slab. The one before it must not be read any more.
  __device__ __forceinline__ staged_slab next() {
    __syncwarp();
    issue(at_ + Config.stages() - 1, stage_ == 0 ? Config.stages() - 1 : stage_ - 1, Config.stages() - 1);
    arch::wait_for_copies<Config.stages() - 1>();
    __syncwarp();
    std::byte* const stage = stages_ + stage_ * static_cast<int>(Config.stage_bytes());
    staged_slab out{.codes = stage};
    if constexpr (Config.sparse()) {
      under_way const it = under_way_[0];
      out.k = reinterpret_cast<fragment_slot const*>(stage + Config.slab_bytes());
      out.v = out.k + Config.staged_slots();
      out.page_k = reinterpret_cast<fragment_slot const*>(page(it.id) + params_.offsets.k_slots) + it.bounds.k_first;
      out.page_v = reinterpret_cast<fragment_slot const*>(page(it.id) + params_.offsets.v_slots) + it.bounds.v_first;
      out.k_count = it.bounds.k_last - it.bounds.k_first;
      out.v_count = it.bounds.v_last - it.bounds.v_first;
#pragma unroll
      for (int i = 0; i + 1 < Config.stages(); ++i) under_way_[i] = under_way_[i + 1];
    }
    ++at_;
    stage_ = stage_ == Config.stages() - 1 ? 0 : stage_ + 1;
    return out;
  }

 private:
  struct under_way {
    std::uint32_t id;
    slot_bounds bounds;
  };

  __device__ __forceinline__ std::uint32_t id(int i) const { return i < count_ ? ids_[i * stride_] : 0; }
  __device__ __forceinline__ std::byte const* page(std::uint32_t id) const { return head_ + id * block_bytes_; }
  __device__ __forceinline__ slot_bounds bounds_of(std::uint32_t id) const {
    if constexpr (!Config.sparse()) return {};
    return reinterpret_cast<slot_bounds const*>(page(id) + params_.offsets.slot_bounds)[slab_];
  }

  /// Slab `i` of the warp, the `place`-th of those under way; a commit for every one, there or not, so that waiting can
  /// count.
  __device__ __forceinline__ void issue(int i, int stage, int place) {
    std::uint32_t const now = ids_ahead_[0];
    slot_bounds const bounds = next_bounds_;
    ids_ahead_[0] = ids_ahead_[1];
    ids_ahead_[1] = id(i + 2);
    if (i + 1 < count_) next_bounds_ = bounds_of(ids_ahead_[0]);
    if (i < count_) {
      std::byte* const to = stages_ + stage * static_cast<int>(Config.stage_bytes());
      copy_codes(to, page(now) + slab_ * static_cast<int>(Config.slab_bytes()));
      if constexpr (Config.sparse()) {
        under_way_[place] = {now, bounds};
        auto* const slots = reinterpret_cast<fragment_slot*>(to + Config.slab_bytes());
        copy_slots(slots, page(now) + params_.offsets.k_slots, bounds.k_first, bounds.k_last);
        copy_slots(slots + Config.staged_slots(), page(now) + params_.offsets.v_slots, bounds.v_first, bounds.v_last);
      }
    }
    arch::commit_copies();
  }
  static __device__ __forceinline__ void copy_codes(std::byte* to, std::byte const* from) {
    constexpr int pieces = static_cast<int>(Config.slab_bytes() / 16);
    int const lane = static_cast<int>(threadIdx.x) % warp_lanes;
    uint4* const mine = reinterpret_cast<uint4*>(to) + lane;
    uint4 const* const source = reinterpret_cast<uint4 const*>(from) + lane;
#pragma unroll
    for (int piece = 0; piece < pieces; piece += warp_lanes)
      if (piece + warp_lanes <= pieces || piece + lane < pieces) arch::copy_async<16>(mine + piece, source + piece);
  }
  static __device__ __forceinline__ void copy_slots(fragment_slot* to, std::byte const* all, int first, int last) {
    int const lane = static_cast<int>(threadIdx.x) % warp_lanes;
    auto const* const from = reinterpret_cast<fragment_slot const*>(all) + first + lane;
#pragma unroll
    for (int i = 0; i < Config.staged_slots(); i += warp_lanes)
      if (i + lane < last - first) arch::copy_async<4>(to + lane + i, from + i);
  }

  attend_params const& params_;
  std::uint32_t const* ids_;
  int stride_, slab_, count_, at_ = 0, stage_ = 0;
  std::byte const* head_;  // of the KV head in the first block
  std::size_t block_bytes_;
  std::byte* stages_;
  std::uint32_t ids_ahead_[2];
  slot_bounds next_bounds_;
  under_way under_way_[Config.stages()]{};  // the oldest first
};

}  // namespace kvquant::cuda
