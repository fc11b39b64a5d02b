#pragma once
/// \file
/// What one block of threads does: attention of up to eight queries over some tiles of one KV head.
///
/// A warp has every fourth slab of 16 tokens. Scores are keys times queries, output is values (transposed) times
/// probabilities, both by m16n8k16 instructions; a page is decoded once for all its queries.

#include <cuda_fp16.h>

#include "backends/cuda/agent/queries.cuh"
#include "backends/cuda/agent/residuals.cuh"
#include "backends/cuda/agent/slab_ring.cuh"
#include "backends/cuda/agent/warp_softmax.cuh"
#include "backends/cuda/decode/exact_rows.cuh"
#include "backends/cuda/decode/quartets.cuh"
#include "backends/cuda/decode/slab.cuh"

namespace kvquant::cuda {

template <attend_config Config>
class attend_agent {
 public:
  static constexpr int d = Config.head_dim, fragments = Config.fragments();
  using codes = slab_codes<Config.bits, d>;
  using levels = typename codes::levels;
  static constexpr bool widths_differ = Config.bits == by_width;
  using places = std::conditional_t<widths_differ, listed_places, own_places>;

  __device__ attend_agent(attend_params const& params, std::byte* shared)
      : params_(params),
        item_(params.items[blockIdx.x]),
        kv_head_(static_cast<int>(blockIdx.y)),
        columns_(static_cast<int>(params.columns)),
        plan_(Config, static_cast<int>(blockDim.x) / warp_lanes, columns_, static_cast<int>(params.tiles_per_chunk)),
        shared_(shared),
        levels_(params.layer.levels + (widths_differ ? kv_head_ * width_offsets(d).end / 4 : 0), shared),
        places_(make_places(levels_)),
        queries_(params.model, places_, item_, kv_head_, columns_,
                 reinterpret_cast<float2*>(shared + plan_.base_queries), shared + plan_.queries) {}

  __device__ void run() {
    float const unit = Config.scaled() ? params_.layer.key_units[kv_head_] : 1;
    if constexpr (Config.scaled()) fill<4>(plan_.key_maps, params_.layer.key_maps + kv_head_ * fragments * 4);
    if constexpr (widths_differ) __syncthreads();  // until the places are there
    if constexpr (Config.angles_in_shared()) fill_angles();
    residuals const sparse = make_residuals();
#pragma unroll 1
    for (token_run const& run : item_.runs) {
      if (run.tiles == 0) continue;
      __syncthreads();
      queries_.prepare(run, run.pages == nullptr ? 1 : unit, columns());
      __syncthreads();
      set_lane_columns();
      if (run.pages != nullptr)
        read_pages(run, sparse, unit);  // of all runs the first
      else
        read_exact(run);
    }
    finish();
  }

 private:
  struct no_residuals {};
  using residuals = std::conditional_t<Config.sparse, residual_buffer, no_residuals>;

  static __device__ places make_places(levels const& of) {
    if constexpr (widths_differ)
      return {of.pair_at(), of.channel_at()};
    else
      return {};
  }

  __device__ residuals make_residuals() const {
    if constexpr (Config.sparse)
      return residuals(shared_ + plan_.residuals + warp() * Config.residual_bytes(), fragments);
    else
      return {};
  }

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % warp_lanes; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / warp_lanes; }
  static __device__ __forceinline__ int warps() { return static_cast<int>(blockDim.x) / warp_lanes; }
  /// Four warps read a page.
  static __device__ __forceinline__ int slab() { return warp() % slabs_per_page; }
  static __device__ __forceinline__ int page_lane() { return warp() / slabs_per_page; }
  static __device__ __forceinline__ int page_lanes() { return warps() / slabs_per_page; }
  __device__ query_column* columns() const { return reinterpret_cast<query_column*>(shared_ + plan_.columns); }

  /// Copies `PerFragment` times `fragments` of 16 bytes.
  template <int PerFragment>
  __device__ void fill(std::size_t to, four_words const* from) const {
    for (int i = static_cast<int>(threadIdx.x); i < PerFragment * fragments; i += static_cast<int>(blockDim.x))
      reinterpret_cast<four_words*>(shared_ + to)[i] = from[i];
  }
  __device__ void fill_angles() const {
    constexpr int all = slabs_per_page * fragments * warp_lanes;
    for (int i = static_cast<int>(threadIdx.x); i < all; i += static_cast<int>(blockDim.x))
      reinterpret_cast<four_words*>(shared_ + plan_.angles)[i] = angles_of(i / warp_lanes, i % warp_lanes);
  }

  /// Of a lane of one of the page's fragments, from the model's table.
  __device__ __forceinline__ four_words angles_of(int fragment, int lane) const {
    four_words const* const all = params_.model.key_angles;
    if constexpr (widths_differ) {
      int const place = fragment % fragments * 8 + lane % 4 * 2, first = fragment / fragments * fragments;
      int const a = places_.pair_at[place], b = places_.pair_at[place + 1];
      auto const of = [&](int pair) { return all[(first + pair / 8) * warp_lanes + lane / 4 * 4 + pair % 8 / 2]; };
      four_words const x = of(a), y = of(b);
      word const halves = (a % 2 != 0 ? 0x32u : 0x10u) | (b % 2 != 0 ? 0x7600u : 0x5400u);
      return {__byte_perm(x.x, y.x, halves), __byte_perm(x.y, y.y, halves), __byte_perm(x.z, y.z, halves),
              __byte_perm(x.w, y.w, halves)};
    } else {
      return all[fragment * warp_lanes + lane];
    }
  }
  /// Of the lane, for a fragment of its slab.
  __device__ __forceinline__ four_words angles(int fragment) const {
    if constexpr (Config.angles_in_shared())
      return reinterpret_cast<four_words const*>(shared_ +
                                                 plan_.angles)[(slab() * fragments + fragment) * warp_lanes + lane()];
    else
      return angles_of(slab() * fragments + fragment, lane());
  }

  __device__ __forceinline__ void read_pages(token_run const& run, residuals const& sparse, float key_unit) {
    float const value_scale = 2 * (widths_differ ? params_.layer.value_units[kv_head_] : 1);
    slab_ring<Config> ring(params_, run, kv_head_, page_lane(), page_lanes(), slab(),
                           shared_ + plan_.rings + warp() * Config.stages() * Config.stage_bytes());
    for_each_tile(run, [&](int tile, std::byte const* queries) {
      std::byte const* const slab = ring.next();
      codes mine(slab, levels_);
      float scales[2] = {value_scale, value_scale}, zeros[2] = {0, 0};
      if constexpr (Config.ranged()) load_ranges(slab, scales, zeros);
      float scores[4], scale = fmaxf(scales[0], scales[1]);
      auto const slots = ring.slots();
      if constexpr (Config.sparse) {
        scale = fmaxf(scale, slots.template largest_residual<1>() / 512);
        sparse.template put<0>(slots, 1 / key_unit);
        __syncwarp();
      }
      score(mine, queries, scores, [&](int i, word(&keys)[4]) {
        if constexpr (Config.scaled()) scale_keys(i, keys);
        if constexpr (Config.sparse) add_residuals(sparse, i, keys);
      });
      take_scores(tile, scale, scores);
      softmax_.add_values(mine, scores, scales, zeros);
      if constexpr (Config.sparse) {
        __syncwarp();
        sparse.template clear<0>(slots);
        __syncwarp();
        sparse.template put<1>(slots, softmax_.residual_factor());
        __syncwarp();
        softmax_.add_residuals(scores, [&](int i, word(&values)[4]) { sparse.read(i, values); });
        __syncwarp();
        sparse.template clear<1>(slots);
      }
    });
    if constexpr (widths_differ) softmax_.correct([&](int place) { return levels_.correction(place); });
  }

  __device__ __forceinline__ void read_exact(token_run const& run) {
    std::size_t const row = static_cast<std::size_t>(params_.model.kv_heads * d);
    for_each_tile(run, [&](int tile, std::byte const* queries) {
      int const token = first_token(tile);
      if (arch::any(token >= run.tokens)) return;
      std::size_t const at = static_cast<std::size_t>(token) * row + static_cast<std::size_t>(kv_head_ * d);
      exact_rows<d, places> mine(params_.model, places_, run.k + at, run.v + at, row, run.tokens - token);
      float const scales[2] = {2, 2}, zeros[2] = {0, 0};
      float scores[4];
      score(mine, queries, scores, [](int, word(&)[4]) {});
      take_scores(tile, 2, scores);
      softmax_.add_values(mine, scores, scales, zeros);
    });
  }

  /// `f(tile, its queries)` for the warp's tiles; queries are turned for a chunk of tiles at a time.
  template <class F>
  __device__ __forceinline__ void for_each_tile(token_run const& run, F&& f) {
    int const chunk = static_cast<int>(params_.tiles_per_chunk);
    int const step = page_lanes() * shared_plan::query_bytes(Config, columns_);
    std::byte const* const mine = shared_ + plan_.queries + page_lane() * shared_plan::query_bytes(Config, columns_);
    for (int first = 0; first < run.tiles; first += chunk) {
      int const count = min(chunk, run.tiles - first);
      if (first > 0) __syncthreads();
      queries_.turn_to(run.first_tile + first, count, columns());
      __syncthreads();
      std::byte const* queries = mine;
      for (int i = page_lane(); arch::any(i < count); i += page_lanes(), queries += step)
        f(run.first_tile + first + i, queries);
    }
  }

  /// The first token of the warp's slab, counted from the run's first.
  __device__ __forceinline__ int first_token(int tile) const { return (tile * slabs_per_page + slab()) * slab_tokens; }

  /// Twice the scale and the zero of the values of tokens g and g + 8: those that take their range to [-1, 1].
  /// `codes`: the lane's first 16 bytes of the slab.
  __device__ __forceinline__ void load_ranges(std::byte const* codes, float (&scales)[2], float (&zeros)[2]) const {
    constexpr int at = static_cast<int>(Config.offsets().slab_ranges);
    auto const* const ranges = reinterpret_cast<word const*>(codes + (lane() & ~3) - lane() * 16 + at);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float2 const range = __half22float2(as_half2(ranges[8 * i]));
      scales[i] = range.y - range.x;
      zeros[i] = range.y + range.x;
    }
  }

  /// Keys, made whole by `finish(fragment, keys)` and turned by their place in the page, times the tile's queries.
  template <class Slab, class Finish>
  __device__ __forceinline__ void score(Slab& mine, std::byte const* queries, float (&scores)[4],
                                        Finish&& finish) const {
#pragma unroll
    for (float& it : scores) it = 0;
    std::byte const* const from = queries + lane_query_;
    uint4 q{};
#pragma unroll
    for (int i = 0; i < fragments; ++i) {
      word keys[4];
      mine.keys(i, keys);
      finish(i, keys);
      turn_keys(angles(i), keys);
      if (i % 2 == 0) q = two_fragments(from + i / 2 * 64, i + 1 < fragments);
      arch::mma(scores, keys, i % 2 ? q.z : q.x, i % 2 ? q.w : q.y);
    }
  }

  /// Where the second is missing it has never been written.
  static __device__ __forceinline__ uint4 two_fragments(std::byte const* from, bool both) {
    if (both) return *reinterpret_cast<uint4 const*>(from);
    uint2 const one = *reinterpret_cast<uint2 const*>(from);
    return make_uint4(one.x, one.y, 0, 0);
  }

  __device__ __forceinline__ void scale_keys(int fragment, word (&keys)[4]) const {
    uint4 const it = reinterpret_cast<uint4 const*>(shared_ + plan_.key_maps)[fragment * 4 + lane() % 4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      keys[i] = as_word(__hfma2(as_half2(keys[i]), as_half2(i < 2 ? it.x : it.z), as_half2(i < 2 ? it.y : it.w)));
  }

  static __device__ __forceinline__ void add_residuals(residuals const& sparse, int fragment, word (&keys)[4]) {
    word added[4];
    sparse.read(fragment, added);
#pragma unroll
    for (int i = 0; i < 4; ++i) keys[i] = as_word(__hadd2(as_half2(keys[i]), as_half2(added[i])));
  }

  /// Firsts and seconds of rows g and g + 8 by half of the cosine and the sine: what is turned stays within binary16.
  static __device__ __forceinline__ void turn_keys(four_words angles, word (&keys)[4]) {
    word const cos[2] = {angles.x, angles.z}, sin[2] = {angles.y, angles.w};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      half2 const x = as_half2(keys[i]), y = as_half2(keys[i + 2]), c = as_half2(cos[i]), s = as_half2(sin[i]);
      keys[i] = as_word(__hfma2(x, c, __hneg2(__hmul2(y, s))));
      keys[i + 2] = as_word(__hfma2(y, c, __hmul2(x, s)));
    }
  }

  /// What the lane is to know of the run's columns: those two that it has scores of, and all together.
  __device__ void set_lane_columns() {
    int const mask = columns_ - 1;
    lane_query_ = (lane() / 4 & mask) * shared_plan::query_column_bytes(d, columns_) + lane() % 4 * 16;
#pragma unroll
    for (int i = 0; i < 2; ++i) scales_[i] = columns()[(lane() % 4 * 2 + i) & mask].scale;
    int from = columns()[0].first, to = columns()[0].last;
    for (int i = 1; i < columns_; ++i) {
      from = max(from, columns()[i].first);
      to = min(to, columns()[i].last);
    }
    seen_from_ = (from + slab_tokens - 1) / slab_tokens;
    seen_slabs_ = static_cast<unsigned>(max(to / slab_tokens - seen_from_, 0));
  }

  /// Scores of tokens that a query does not see, from the slab's first on.
  __device__ __forceinline__ void hide(int token, float (&scores)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      query_column const it = columns()[(lane() % 4 * 2 + i % 2) & (columns_ - 1)];
      int const row = token + lane() / 4 + i / 2 * 8;
      if (row < it.first || row >= it.last) scores[i] = -INFINITY;
    }
  }

  /// From scores to p, which replaces them. `scale`: of the values (see `warp_softmax::step`).
  __device__ __forceinline__ void take_scores(int tile, float scale, float (&scores)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[i] *= scales_[i % 2];
    if (arch::any(static_cast<unsigned>(tile * slabs_per_page + slab() - seen_from_) >= seen_slabs_))
      hide(first_token(tile), scores);
    softmax_.step(scores, scale);
  }

  /// Merges the warps, in their order.
  __device__ void finish() {
    auto* const records = reinterpret_cast<float*>(shared_);
    softmax_.reduce();
    __syncthreads();
    softmax_.store(records + warp() * columns_ * static_cast<int>(partial_floats(d)), columns_);
    __syncthreads();
    float* const out =
        params_.partials + static_cast<std::size_t>(item_.partial + kv_head_ * item_.columns) * partial_floats(d);
    for (int i = static_cast<int>(threadIdx.x); i < item_.columns * d; i += static_cast<int>(blockDim.x))
      merge_warps(records, i / d, i % d, out);
  }

  __device__ void merge_warps(float const* records, int column, int channel, float* out) const {
    constexpr int size = static_cast<int>(partial_floats(d));
    auto const record = [&](int of) { return records + (of * columns_ + column) * size; };
    float largest = record(0)[0], sum = 0, o = 0;
    for (int i = 1; i < warps(); ++i) largest = fmaxf(largest, record(i)[0]);
    for (int i = 0; i < warps(); ++i) {
      float const factor = arch::exp2(record(i)[0] - largest);
      sum += factor * record(i)[1];
      o += factor * record(i)[2 + channel];
    }
    out += column * size;
    if (channel == 0) {
      out[0] = largest;
      out[1] = sum;
    }
    if constexpr (widths_differ) channel = levels_.channel_of(channel);
    out[2 + channel] = o;
  }

  attend_params const& params_;
  work_item const& item_;
  int kv_head_, columns_;
  shared_plan plan_;
  std::byte* shared_;
  levels levels_;
  places places_;
  query_rows<d, places> queries_;
  int lane_query_;       // bytes from a tile's queries to those of the lane
  float scales_[2];      // of the lane's columns
  int seen_from_;        // slabs of the run whose tokens every column sees: the first,
  unsigned seen_slabs_;  // and how many
  warp_softmax<d> softmax_;
};

}  // namespace kvquant::cuda
