#pragma once
/// \file
/// A warp's slabs on their way from the pages to shared memory, a few at a time.

#include <utility>

#include "backends/cuda/agent/shared_plan.hpp"
#include "backends/cuda/arch/instructions.cuh"

namespace kvquant::cuda {

using arch::word;

/// What has arrived of one slab.
struct staged_slab {
  std::byte const* codes;                ///< in shared memory: the lane's first 16 bytes
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
        block_bytes_(static_cast<std::uint32_t>(params.model.kv_heads) * static_cast<std::uint32_t>(params.page_bytes)),
        stage_(stages + lane() * 16),
        last_(stage_ + (Config.stages() - 1) * stage_bytes),
        spare_(last_) {
    ids_ahead_[0] = id(0);
    ids_ahead_[1] = id(1);
    next_bounds_ = bounds_of(ids_ahead_[0]);
#pragma unroll
    for (int i = 0; i < Config.stages() - 1; ++i) issue(stage_ + i * stage_bytes, i);
  }

  /// The warp's next slab. The one before it must not be read any more.
  __device__ __forceinline__ staged_slab next() {
    __syncwarp();
    issue(spare_, Config.stages() - 1);
    arch::wait_for_copies<Config.stages() - 1>();
    __syncwarp();
    staged_slab out{.codes = stage_};
    if constexpr (Config.sparse()) {
      under_way const it = under_way_[0];
      out.k = slots_of(stage_);
      out.v = out.k + Config.staged_slots();
      out.page_k = reinterpret_cast<fragment_slot const*>(page(it.id) + params_.offsets.k_slots) + it.bounds.k_first;
      out.page_v = reinterpret_cast<fragment_slot const*>(page(it.id) + params_.offsets.v_slots) + it.bounds.v_first;
      out.k_count = it.bounds.k_last - it.bounds.k_first;
      out.v_count = it.bounds.v_last - it.bounds.v_first;
#pragma unroll
      for (int i = 0; i + 1 < Config.stages(); ++i) under_way_[i] = under_way_[i + 1];
    }
    spare_ = stage_;
    stage_ += stage_ == last_ ? (1 - Config.stages()) * stage_bytes : stage_bytes;
    return out;
  }

 private:
  struct under_way {
    std::uint32_t id;
    slot_bounds bounds;
  };

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % warp_lanes; }
  /// Of a stage that is given by the lane's part.
  static __device__ __forceinline__ fragment_slot* slots_of(std::byte* stage) {
    return reinterpret_cast<fragment_slot*>(stage + Config.slab_bytes() - lane() * 16);
  }
  /// Behind the last there is what nobody uses.
  __device__ __forceinline__ std::uint32_t id(int i) const { return ids_[i * stride_]; }
  __device__ __forceinline__ std::byte const* page(std::uint32_t id) const {
    return head_ + static_cast<std::size_t>(id) * block_bytes_;
  }
  __device__ __forceinline__ slot_bounds bounds_of(std::uint32_t id) const {
    if constexpr (!Config.sparse()) return {};
    return reinterpret_cast<slot_bounds const*>(page(id) + params_.offsets.slot_bounds)[slab_];
  }

  /// The next slab of the warp, the `place`-th of those under way; a commit for every one, there or not, so that
  /// waiting can count.
  __device__ __forceinline__ void issue(std::byte* to, int place) {
    std::uint32_t const now = ids_ahead_[0];
    slot_bounds const bounds = next_bounds_;
    ids_ahead_[0] = ids_ahead_[1];
    ids_ahead_[1] = id(next_ + 2);
    if (next_ + 1 < count_) next_bounds_ = bounds_of(ids_ahead_[0]);
    if (next_ < count_) {
      copy_codes(arch::shared_address(to), page(now) + slab_ * static_cast<int>(Config.slab_bytes()) + lane() * 16,
                 std::make_integer_sequence<int, pieces / warp_lanes>{});
      if constexpr (Config.sparse()) {
        under_way_[place] = {now, bounds};
        copy_slots(slots_of(to), page(now) + params_.offsets.k_slots, bounds.k_first, bounds.k_last);
        copy_slots(slots_of(to) + Config.staged_slots(), page(now) + params_.offsets.v_slots, bounds.v_first,
                   bounds.v_last);
      }
    }
    ++next_;
    arch::commit_copies();
  }
  /// Every 32nd piece of 16 bytes from the lane's first.
  template <int... Rounds>
  static __device__ __forceinline__ void copy_codes(word to, std::byte const* from,
                                                    std::integer_sequence<int, Rounds...>) {
    (arch::copy_async<16, Rounds * warp_lanes * 16>(to, from), ...);
    constexpr int left = pieces % warp_lanes, done = pieces - left;
    if (lane() < left) arch::copy_async<16, done * 16>(to, from);
  }
  static __device__ __forceinline__ void copy_slots(fragment_slot* to, std::byte const* all, int first, int last) {
    auto const* const from = reinterpret_cast<fragment_slot const*>(all) + first + lane();
#pragma unroll
    for (int i = 0; i < Config.staged_slots(); i += warp_lanes)
      if (i + lane() < last - first) arch::copy_async<4>(arch::shared_address(to + lane() + i), from + i);
  }

  static constexpr int pieces = static_cast<int>(Config.slab_bytes() / 16);
  static constexpr int stage_bytes = static_cast<int>(Config.stage_bytes());

  attend_params const& params_;
  std::uint32_t const* ids_;
  int stride_, slab_, count_, next_ = 0;
  std::byte const* head_;  // of the KV head in the first block
  std::uint32_t block_bytes_;
  std::byte *stage_, *last_,
      *spare_;  // stages, as the lane's part of each: the next, the ring's last, the one that was read
  std::uint32_t ids_ahead_[2];
  slot_bounds next_bounds_;
  under_way under_way_[Config.stages()]{};  // the oldest first
};

}  // namespace kvquant::cuda
