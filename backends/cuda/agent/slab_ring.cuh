#pragma once
/// \file
/// A warp's slabs on their way from the pages to shared memory, a few at a time.

#include <utility>

#include "backends/cuda/agent/residuals.cuh"
#include "backends/cuda/agent/shared_plan.hpp"
#include "backends/cuda/arch/instructions.cuh"

namespace kvquant::cuda {

/// The KV head's slabs of a run that a warp reads: the `slab`-th of tiles first, first + stride, ... A warp needs no
/// other to be there: what it copies, it reads.
template <attend_config Config>
class slab_ring {
 public:
  /// `stages`: of the warp, in shared memory, `Config.stages()` of `Config.stage_bytes()`.
  __device__ slab_ring(attend_params const& params, token_run const& run, int kv_head, int first, int stride, int slab,
                       std::byte* stages)
      : ids_(run.pages + run.first_tile + first),
        stride_(stride),
        count_(run.tiles > first ? (run.tiles - first + stride - 1) / stride : 0),
        head_(params.slab + static_cast<std::size_t>(kv_head) * params.page_bytes),
        offsets_(Config.bits == by_width ? params.offsets : Config.offsets()),
        mine_(head_ + slab * slab_bytes() + lane() * 16),
        block_bytes_(static_cast<std::uint32_t>(params.model.kv_heads) * static_cast<std::uint32_t>(params.page_bytes)),
        k_slots_(static_cast<std::uint32_t>(params.offsets.k_slots)),
        v_slots_(static_cast<std::uint32_t>(params.offsets.v_slots)),
        stage_(stages + lane() * 16),
        last_(stage_ + (Config.stages() - 1) * stage_bytes),
        spare_(last_),
        lane_slots_(static_cast<std::uint32_t>(lane() * 4 - lane() * 16 - slab * slab_bytes())) {
    next_part_ = part(id(0));
    id_ahead_ = id(1);
    if constexpr (Config.sparse)
      if (count_ > 0) next_runs_ = runs_in(next_part_);
#pragma unroll
    for (int i = 0; i < Config.stages() - 1; ++i) issue(stage_ + i * stage_bytes);
  }

  /// The warp's next slab: the lane's first 16 bytes of what has arrived. The slab before it must not be read any more.
  __device__ __forceinline__ std::byte const* next() {
    __syncwarp();
    issue(spare_);
    arch::wait_for_copies<Config.stages() - 1>();
    __syncwarp();
    spare_ = stage_;
    stage_ += stage_ == last_ ? (1 - Config.stages()) * stage_bytes : stage_bytes;
    return spare_;
  }

  /// Of the slab that `next` gave.
  __device__ __forceinline__ auto slots() const {
    if constexpr (Config.sparse)
      return slots_type(
          reinterpret_cast<word const*>(spare_ + slots_at),
          reinterpret_cast<word const*>(spare_ - lane() * 16 + runs_at()), (more_ >> (Config.stages() - 1) & 1) != 0,
          page_slots{ids_ + (next_ - Config.stages()) * stride_, head_, block_bytes_, {k_slots_, v_slots_}});
    else
      return nullptr;
  }

 private:
  using slots_type = slab_slots<Config.staged_slots()>;
  static constexpr int most_pieces = static_cast<int>(Config.slab_bytes() / 16);
  /// Where a stage has the lane's slots.
  static constexpr int slots_at = static_cast<int>(Config.slab_bytes());
  static constexpr int stage_bytes = static_cast<int>(Config.stage_bytes());

  __device__ __forceinline__ int slab_bytes() const { return static_cast<int>(offsets_.slab_bytes); }
  __device__ __forceinline__ int runs_at() const { return static_cast<int>(offsets_.slab_slots); }

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % warp_lanes; }
  /// Behind the last there is what nobody uses.
  __device__ __forceinline__ std::uint32_t id(int i) const { return ids_[i * stride_]; }
  __device__ __forceinline__ std::byte const* part(std::uint32_t id) const {
    return mine_ + static_cast<std::size_t>(id) * block_bytes_;
  }
  __device__ __forceinline__ uint2 runs_in(std::byte const* part) const {
    return *reinterpret_cast<uint2 const*>(part - lane() * 16 + runs_at());
  }
  /// The next slab of the warp; a commit for every one, there or not, so that waiting can count.
  __device__ __forceinline__ void issue(std::byte* to) {
    std::byte const* const from = next_part_;
    [[maybe_unused]] uint2 const runs = next_runs_;
    if constexpr (Config.sparse)
      more_ = more_ << 1 | (arch::any(slots_type::are_more(runs.x) || slots_type::are_more(runs.y)) ? 1 : 0);
    next_part_ = part(id_ahead_);
    id_ahead_ = id(next_ + 2);
    if constexpr (Config.sparse)
      if (arch::any(next_ + 1 < count_)) next_runs_ = runs_in(next_part_);
    if (arch::any(next_ < count_)) {
      copy_codes(arch::shared_address(to), from,
                 std::make_integer_sequence<int, (most_pieces + warp_lanes - 1) / warp_lanes>{});
      if constexpr (Config.sparse) {
        copy_slots(to + slots_at, from, k_slots_, runs.x);
        copy_slots(to + slots_at + sizeof(word), from, v_slots_, runs.y);
      }
    }
    ++next_;
    arch::commit_copies();
  }
  /// Every 32nd piece of 16 bytes from the lane's first.
  template <int... Rounds>
  __device__ __forceinline__ void copy_codes(word to, std::byte const* from,
                                             std::integer_sequence<int, Rounds...>) const {
    (copy_round<Rounds>(to, from), ...);
  }
  template <int Round>
  __device__ __forceinline__ void copy_round(word to, std::byte const* from) const {
    constexpr int end = (Round + 1) * warp_lanes;
    int const pieces = Config.bits == by_width ? slab_bytes() / 16 : most_pieces;
    bool const all = Config.bits != by_width && end <= most_pieces;
    if (all || Round * warp_lanes + lane() < pieces) arch::copy_async<Round * warp_lanes * 16>(to, from);
  }
  /// `from`: the lane's part of the slab; `run`: a `slot_run`. Zeros where the lane has none.
  __device__ __forceinline__ void copy_slots(std::byte* to, std::byte const* from, std::uint32_t slots,
                                             word run) const {
    int const count = static_cast<int>(run >> 16) - lane();
    from += slots + lane_slots_ + (run & 0xffffu);
#pragma unroll
    for (int i = 0; i < Config.staged_slots(); i += warp_lanes)
      arch::copy_or_clear(arch::shared_address(to + i / warp_lanes * 2 * sizeof(word)), from + i * sizeof(word),
                          i < count);
  }

  std::uint32_t const* ids_;
  int stride_, count_, next_ = 0;
  std::byte const* head_;     // of the KV head in the first block
  fragment_offsets offsets_;  // within slabs
  std::byte const* mine_;     // the lane's part of the warp's slab in the first block
  std::uint32_t block_bytes_, k_slots_, v_slots_;
  std::byte *stage_, *last_, *spare_;  // the lane's part of each: of the next, of the ring's last, of the one before
  std::byte const* next_part_;
  std::uint32_t id_ahead_;
  std::uint32_t lane_slots_;  // from the lane's part of a slab to its first slot, less the slots' offset: below zero
  uint2 next_runs_{};
  word more_ = 0;  // bit i: of the slab that was issued i before the last, there are more slots than are staged
};

}  // namespace kvquant::cuda
