#pragma once
/// \file
/// How one call is cut into tasks, and what they leave put together again. What a task is depends on the sequence
/// alone, never on the threads or on the rest of the batch, and results are merged in the order of the tokens: the same
/// bits for any executor.

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "kvquant/attend/attend_args.hpp"
#include "kvquant/attend/softmax_state.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/cache/sequence.hpp"
#include "kvquant/core/executor.hpp"

namespace kvquant::cpu {

/// Where tokens are stored: each run starts a tile of its own.
enum class run { sinks, pages, tail };
inline constexpr std::array all_runs{run::sinks, run::pages, run::tail};

/// A place in a sequence: tile `index` of a run.
struct tile_place {
  std::size_t base;    ///< position of the first token
  std::size_t tokens;  ///< 1 to page_tokens
};

inline std::size_t tokens_in(layer_view const& cache, run which) {
  return which == run::sinks ? cache.sink_k.rows : which == run::pages ? cache.sealed : cache.tail_k.rows;
}
inline std::size_t tiles_in(layer_view const& cache, run which) {
  return (tokens_in(cache, which) + page_tokens - 1) / page_tokens;
}
inline tile_place place_of(layer_view const& cache, run which, std::size_t index) {
  std::size_t const before = which == run::sinks   ? 0
                             : which == run::pages ? cache.sink_k.rows
                                                   : cache.sink_k.rows + cache.sealed;
  std::size_t const first = index * page_tokens;
  return {before + first, std::min(page_tokens, tokens_in(cache, which) - first)};
}

/// Consecutive queries of one sequence.
struct query_block {
  attend_args const* args;
  std::size_t first_row, rows;

  std::size_t position(std::size_t row) const { return args->position(first_row + row); }
};

struct token_range {
  std::size_t first, last;
  bool empty() const { return first >= last; }
};

/// The tokens of a tile that a row of the block sees, counted from the tile's first.
inline token_range visible_in(query_block const& block, std::size_t row, run where, tile_place const& place) {
  std::size_t const position = block.position(row);
  if (place.base > position) return {0, 0};
  std::size_t const from =
      where == run::sinks ? block.args->first_visible_sink(position) : block.args->first_visible(position);
  return {from > place.base ? std::min(from - place.base, place.tokens) : 0,
          std::min(place.tokens, position + 1 - place.base)};
}
inline bool any_visible(query_block const& block, run where, tile_place const& place) {
  // The window starts with the first row and ends with the last.
  for (std::size_t const row : {std::size_t{0}, block.rows - 1})
    if (!visible_in(block, row, where, place).empty()) return true;
  // Between them both ends move; a tile that neither sees lies before the window or after the queries.
  std::size_t const reach = where == run::sinks ? block.args->cache.window : block.args->reach();
  return reach != 0 && reach < block.rows;
}

/// Tiles that lie before the layer's window for all of the block, counted through the runs.
inline std::size_t tiles_before_window(query_block const& block) {
  layer_view const& cache = block.args->cache;
  std::size_t const seen = block.args->first_visible_sink(block.position(0));
  std::size_t before = 0;
  for (run const where : all_runs) {
    std::size_t const tiles = tiles_in(cache, where);
    if (tiles == 0) continue;
    std::size_t const base = place_of(cache, where, 0).base;
    if (seen < base + tokens_in(cache, where)) return before + (seen - std::min(seen, base)) / page_tokens;
    before += tiles;
  }
  return before;
}

/// What one task reads: some tiles of one KV head, for one block of queries. Tiles are counted through the runs.
struct split {
  query_block queries;
  std::size_t kv_head;
  std::size_t first_tile, tiles;
  std::size_t partial;  ///< where its results start: m, l, o of every (row, head of the group)

  /// `f(run, first, last)` for the tiles of each run that the split has some of.
  template <class F>
  void for_each_run(F&& f) const {
    std::size_t before = 0;
    for (run const where : all_runs) {
      std::size_t const count = tiles_in(queries.args->cache, where);
      std::size_t const first = std::clamp(first_tile, before, before + count) - before;
      std::size_t const last = std::clamp(first_tile + tiles, before, before + count) - before;
      if (first < last) f(where, first, last);
      before += count;
    }
  }
};

/// The splits of one KV head and one block, in the order of their tokens.
struct merge_group {
  std::size_t first_split, splits;
};

/// The tasks of one wave, and where their results go.
struct plan {
  std::vector<split> splits;
  std::vector<merge_group> groups;
  std::vector<float> partials;
  std::size_t partial_floats = 0;

  void clear() {
    splits.clear();
    groups.clear();
    partial_floats = 0;
  }
  /// Splits begin at the same tiles whatever the window, so that a query's bits do not depend on others beside it.
  void add_block(query_block const& queries, model_shape const& shape, std::size_t tiles_per_split) {
    layer_view const& cache = queries.args->cache;
    std::size_t tiles = 0;
    for (run const where : all_runs) tiles += tiles_in(cache, where);
    std::size_t const first = tiles_before_window(queries) / tiles_per_split * tiles_per_split;
    auto const kv_heads = static_cast<std::size_t>(shape.kv_heads);
    auto const heads = static_cast<std::size_t>(shape.q_heads) / kv_heads;
    for (std::size_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
      groups.push_back({splits.size(), (tiles - first + tiles_per_split - 1) / tiles_per_split});
      for (std::size_t tile = first; tile < tiles; tile += tiles_per_split) {
        splits.push_back({queries, kv_head, tile, std::min(tiles_per_split, tiles - tile), partial_floats});
        partial_floats += queries.rows * heads * partial_size(shape);
      }
    }
  }
  /// Tasks run in waves, so that long prompts need no more memory than one wave's partial results.
  bool fills_wave() const { return partial_floats >= (std::size_t{1} << 22); }
  /// `attend(index of the split, worker, partials)` for every task, then their results are merged, and all is done.
  template <class Attend>
  void run_wave(model_shape const& shape, executor_ref executor, Attend&& attend) {
    partials.resize(std::max(partials.size(), partial_floats));
    executor.parallel_for(splits.size(), [&](std::size_t task, int worker) {
      attend(task, worker, partials.data() + splits[task].partial);
    });
    executor.parallel_for(groups.size(), [&](std::size_t task, int) { merge(groups[task], shape); });
    clear();
  }

  /// m, l, o
  static std::size_t partial_size(model_shape const& shape) { return static_cast<std::size_t>(shape.head_dim) + 2; }

  void merge(merge_group const& it, model_shape const& shape) {
    split const& first = splits[it.first_split];
    attend_args const& args = *first.queries.args;
    auto const d = static_cast<std::size_t>(shape.head_dim);
    auto const heads = static_cast<std::size_t>(shape.q_heads / shape.kv_heads);
    for (std::size_t row = 0; row < first.queries.rows; ++row)
      for (std::size_t head = 0; head < heads; ++head) {
        auto const partial = [&](std::size_t i) {
          return partials.data() + splits[it.first_split + i].partial + (row * heads + head) * partial_size(shape);
        };
        softmax_state state{partial(0)[0], partial(0)[1]};
        std::span<float> const o(partial(0) + 2, d);
        for (std::size_t i = 1; i < it.splits; ++i)
          merge_into(state, o, {partial(i)[0], partial(i)[1]}, {partial(i) + 2, d});
        std::size_t const q_row = first.queries.first_row + row, q_head = first.kv_head * heads + head;
        for (std::size_t i = 0; i < d; ++i) args.out(q_row, q_head * d + i) = o[i] / state.l;
        if (!args.score_max.empty()) args.score_max(q_row, q_head) = state.m;
        if (!args.score_sum.empty()) args.score_sum(q_row, q_head) = state.l;
      }
  }
};

}  // namespace kvquant::cpu
