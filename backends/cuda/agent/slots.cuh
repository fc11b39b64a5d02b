#pragma once
/// \file
/// What sparse elements add. Sums are formed by tensor cores, as products with matrices that have a 1 where a slot is
/// of a token or of a channel: an order that never varies, and no atomics.

#include <cuda_fp16.h>

#include "backends/cuda/agent/queries.cuh"
#include "backends/cuda/agent/slab_ring.cuh"

namespace kvquant::cuda {

template <attend_config Config>
class slab_slots {
 public:
  static constexpr int columns = Config.slot_columns;

  /// `angles`: of the warp's slab, [fragments, 32 lanes]. `scratch`: of the warp, `Config.slot_scratch_bytes()`.
  __device__ slab_slots(four_words const* angles, float key_unit, std::byte* scratch)
      : angles_(angles),
        inverse_unit_(1 / key_unit),
        contributions_(reinterpret_cast<uint4*>(scratch)),
        tokens_(reinterpret_cast<std::uint16_t*>(scratch + 512)) {}

  /// scores += residual · (the turned query's element), 32 slots at a time, one to a lane. `queries`: of the tile.
  __device__ __forceinline__ void add_keys(staged_slab const& it, std::byte const* queries, float (&scores)[4]) const {
    for (int first = 0; first < it.k_count; first += warp_lanes) {
      fragment_slot const mine = slot(it.k, it.page_k, first + lane(), it.k_count);
      uint4 const added = contribution(mine, queries);
      __syncwarp();
      contributions_[lane()] = added;
      tokens_[lane()] = static_cast<std::uint16_t>(mine.token());
      __syncwarp();
      word b[4];
      arch::load_transposed(b, arch::shared_address(contributions_ + lane()));
#pragma unroll
      for (int of = 0; of < 2; ++of) {
        word a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          word const row = static_cast<word>(lane() / 4 + i % 2 * 8) * 0x10001u;
          a[i] = equal(reinterpret_cast<word const*>(tokens_)[of * 8 + i / 2 * 4 + lane() % 4], row);
        }
        arch::mma(scores, a, b[2 * of], b[2 * of + 1]);
      }
    }
  }

  /// o += residual · p, 16 slots at a time: p of each slot's token first, then what it adds to its channel.
  template <class Softmax>
  __device__ __forceinline__ void add_values(staged_slab const& it, float const (&p)[4], Softmax& softmax) const {
    word const p0 = arch::transposed(as_word(__floats2half2_rn(p[0], p[1])));
    word const p1 = arch::transposed(as_word(__floats2half2_rn(p[2], p[3])));
    for (int first = 0; first < it.v_count; first += 16) {
      auto const read = [&](int i) { return slot(it.v, it.page_v, first + i, it.v_count); };
      fragment_slot const upper = read(lane() / 4), lower = read(lane() / 4 + 8);
      word const tokens = static_cast<word>(lane() % 4 * 2) * 0x10001u + 0x10000u;  // 2t, 2t + 1
      word const a[4] = {equal(tokens, twice(upper.token())), equal(tokens, twice(lower.token())),
                         equal(tokens + 0x80008u, twice(upper.token())),
                         equal(tokens + 0x80008u, twice(lower.token()))};
      float rows[4] = {};
      arch::mma(rows, a, p0, p1);
#pragma unroll
      for (int i = 0; i < 4; ++i) rows[i] *= __half2float(__ushort_as_half(i < 2 ? upper.residual : lower.residual));
      word const left = channels_of(read(lane() % 4 * 2), read(lane() % 4 * 2 + 1));
      word const right = channels_of(read(lane() % 4 * 2 + 8), read(lane() % 4 * 2 + 9));
      softmax.add_rows(rows, [&](int fragment, word(&of)[4]) {
        word const channel = twice(16 * fragment + lane() / 4);
        of[0] = equal(left, channel);
        of[1] = equal(left, channel + 0x80008u);
        of[2] = equal(right, channel);
        of[3] = equal(right, channel + 0x80008u);
      });
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % warp_lanes; }

  static __device__ __forceinline__ word twice(int x) { return static_cast<word>(x) * 0x10001u; }
  static __device__ __forceinline__ word channels_of(fragment_slot a, fragment_slot b) {
    return static_cast<word>(a.channel() | b.channel() << 16);
  }
  /// Half by half 1 or 0, in binary16. What is compared are small numbers, which are different ones in binary16 too.
  static __device__ __forceinline__ word equal(word a, word b) { return as_word(__heq2(as_half2(a), as_half2(b))); }

  static __device__ __forceinline__ fragment_slot slot(fragment_slot const* staged, fragment_slot const* in_page,
                                                       int index, int count) {
    if (index >= count) return {0, 0};
    return index < Config.staged_slots() ? staged[index] : in_page[index];
  }

  /// residual · (the query's element turned by the token's angle) of eight columns, as binary16.
  __device__ __forceinline__ uint4 contribution(fragment_slot it, std::byte const* queries) const {
    int const pair = it.channel() % second_member, fragment = pair / 8, two = pair % 8 / 2;
    bool const second = it.channel() >= second_member;
    four_words const angle = angles_[fragment * warp_lanes + it.token() % 8 * 4 + two];
    bool const upper = it.token() >= 8;
    float const cos = member(upper ? angle.z : angle.x, pair), sin = member(upper ? angle.w : angle.y, pair);
    float const wide = __half2float(__ushort_as_half(it.residual)) * inverse_unit_;
    float const residual = fminf(fmaxf(wide, -largest), largest);
    float const of_first = residual * (second ? -sin : cos), of_second = residual * (second ? cos : sin);
    std::byte const* const from = queries + fragment / 2 * 64 + two * 16 + fragment % 2 * 8;
    float sums[columns];
#pragma unroll
    for (int column = 0; column < columns; ++column) {
      uint2 const q =
          *reinterpret_cast<uint2 const*>(from + column * shared_plan::query_column_bytes(Config.head_dim, columns));
      sums[column] = of_first * member(q.x, pair) + of_second * member(q.y, pair);
    }
    auto const both = [&](int i) { return as_word(__floats2half2_rn(sums[i % columns], sums[(i + 1) % columns])); };
    return make_uint4(both(0), both(2), both(4), both(6));
  }
  /// One of two neighbouring pairs.
  static __device__ __forceinline__ float member(word both, int pair) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair % 2 ? both >> 16 : both & 0xffffu)));
  }

  /// Of a residual over the head's unit. With the halved angle, and queries of 1 at most, binary16 holds the product.
  static constexpr float largest = 60000;

  four_words const* angles_;
  float inverse_unit_;
  uint4* contributions_;   // [32 slots], 8 columns of binary16 each
  std::uint16_t* tokens_;  // [32 slots]
};

}  // namespace kvquant::cuda
