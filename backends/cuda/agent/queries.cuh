#pragma once
/// \file
/// Queries as second operands of tensor-core instructions.
///
/// A query is divided by its largest element, so that binary16 holds it whatever it is, and turned in two steps: by its
/// distance to the run's first token modulo 64, once; and by whole pages, to every tile that is read. Both are exact to
/// binary32: angles come from tables made in double.

#include <cuda_fp16.h>

#include "backends/cuda/agent/shared_plan.hpp"
#include "backends/cuda/arch/instructions.cuh"

namespace kvquant::cuda {

using arch::word;

__device__ __forceinline__ word as_word(half2 x) { return *reinterpret_cast<word*>(&x); }
__device__ __forceinline__ half2 as_half2(word x) { return *reinterpret_cast<half2*>(&x); }

/// (x, y) turned by `it`, or back.
__device__ __forceinline__ float2 turned(float2 x, turn it, float direction) {
  float const sine = it.sin * direction;
  return {x.x * it.cos - x.y * sine, x.x * sine + x.y * it.cos};
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

/// `Places`: in which order a head's pairs are wanted (`decode/exact_rows.cuh`).
template <int HeadDim, class Places>
class query_rows {
 public:
  static constexpr int pairs = HeadDim / 2, warp_pairs = (pairs + warp_lanes - 1) / warp_lanes;

  __device__ query_rows(model_tables const& model, Places const& places, work_item const& item, int kv_head,
                        int columns, float2* base, std::byte* turned_queries)
      : model_(model),
        places_(places),
        item_(item),
        kv_head_(kv_head),
        columns_(columns),
        base_(base),
        queries_(turned_queries) {}

  /// Column by column, a warp each: the queries at their place within a page, and what is to be known of them. Columns
  /// beyond the item's repeat its last.
  __device__ void prepare(token_run const& run, float key_unit, query_column* info) const {
    int const warps = static_cast<int>(blockDim.x) / warp_lanes, lane = static_cast<int>(threadIdx.x) % warp_lanes;
    for (int column = static_cast<int>(threadIdx.x) / warp_lanes; column < columns_; column += warps) {
      int const index = item_.first_column + min(column, item_.columns - 1), row = index / model_.group;
      int const head = kv_head_ * model_.group + index % model_.group, position = item_.position + row;
      float const* const q =
          item_.q + (static_cast<std::size_t>(row) * model_.kv_heads * model_.group + head) * HeadDim;
      int const distance = item_.rotated ? run.base : max(position - run.base, 0);
      float2 members[warp_pairs];
      float const largest = load(q, members);
      for (int i = 0; i < warp_pairs; ++i)
        if (int const place = lane + i * warp_lanes; place < pairs)
          base_[column * pairs + place] =
              turned(members[i], model_.token_turns[distance % 64 * pairs + pair_at(place)], direction());
      if (lane == 0)
        info[column] = {2 * 1.44269504f * item_.softmax_scale * largest * key_unit,
                        run.window == 0 ? 0 : max(position + 1 - run.window - run.base, 0),
                        min(run.tokens, position + 1 - run.base), distance / 64};
    }
  }

  /// All threads: the queries of tiles [first, first + count), counted from the run's first.
  __device__ void turn_to(int first, int count, query_column const* info) const {
    constexpr int twos = pairs / 2;
    int const column_bytes = shared_plan::query_column_bytes(HeadDim, columns_);
    for (int i = static_cast<int>(threadIdx.x); i < count * columns_ * twos; i += static_cast<int>(blockDim.x)) {
      int const two = i % twos, column = i / twos % columns_, tile = i / twos / columns_;
      int const page = max(info[column].turn + (item_.rotated ? 1 : -1) * (first + tile), 0);
      float4 const turns = two_turns(page * pairs, two);
      float4 const members = reinterpret_cast<float4 const*>(base_)[column * twos + two];
      float2 const a = turned({members.x, members.y}, {turns.x, turns.y}, direction());
      float2 const b = turned({members.z, members.w}, {turns.z, turns.w}, direction());
      int const fragment = two / 4;
      std::byte* const to = queries_ + (tile * columns_ + column) * column_bytes + fragment / 2 * 64 + two % 4 * 16;
      reinterpret_cast<uint2*>(to)[fragment % 2] =
          make_uint2(as_word(__floats2half2_rn(a.x, b.x)), as_word(__floats2half2_rn(a.y, b.y)));
    }
  }

 private:
  __device__ __forceinline__ int pair_at(int place) const {
    if constexpr (Places::ordered)
      return places_.pair_at[place];
    else
      return place;
  }
  /// Of two neighbouring places, by the page whose turns start at `first`.
  __device__ __forceinline__ float4 two_turns(int first, int two) const {
    if constexpr (Places::ordered) {
      turn const a = model_.page_turns[first + pair_at(2 * two)], b = model_.page_turns[first + pair_at(2 * two + 1)];
      return {a.cos, a.sin, b.cos, b.sin};
    } else {
      return reinterpret_cast<float4 const*>(model_.page_turns + first)[two];
    }
  }

  __device__ float direction() const { return item_.rotated ? -1.0f : 1.0f; }

  /// The pairs of one query, by place, over its largest element, which is returned.
  __device__ float load(float const* q, float2 (&members)[warp_pairs]) const {
    float largest = 0;
    for (int i = 0; i < warp_pairs; ++i) {
      int const place = static_cast<int>(threadIdx.x) % warp_lanes + i * warp_lanes;
      members[i] = {0, 0};
      if (place >= pairs) continue;
      int const pair = pair_at(place);
      bool const is_turned = pair < model_.turned_pairs, split = is_turned && model_.half_split;
      float const factor = is_turned && !item_.rotated ? model_.attention_factor : 1;
      members[i] = {factor * q[split ? pair : 2 * pair], factor * q[split ? pair + model_.turned_pairs : 2 * pair + 1]};
      largest = fmaxf(largest, fmaxf(fabsf(members[i].x), fabsf(members[i].y)));
    }
    largest = warp_max(largest);
    float const unit = largest > 0 ? 1 / largest : 0;
    for (float2& it : members) it = {it.x * unit, it.y * unit};
    return largest;
  }

  model_tables const& model_;
  Places places_;
  work_item const& item_;
  int kv_head_, columns_;
  float2* base_;        // [columns, pairs]
  std::byte* queries_;  // see shared_plan
};

}  // namespace kvquant::cuda
