#pragma once
/// \file
/// How one call is cut into work items, and what their results are merged into. What an item is depends on its sequence
/// alone, never on the rest of the batch.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backends/cuda/kernel/params.hpp"
#include "backends/cuda/tuning.hpp"
#include "kvquant/attend/attend_args.hpp"
#include "kvquant/cache/page.hpp"

namespace kvquant::cuda {

/// Where one sequence's queries and results are in device memory, each as in `attend_args`.
struct device_rows {
  float const* q;
  float *out, *score_max, *score_sum;  ///< the latter two null where they are not wanted
};

class plan {
 public:
  std::vector<work_item> items;
  std::vector<merge_item> outputs;
  std::uint32_t records = 0;  ///< partial results
  int most_columns = 1;

  void clear() {
    items.clear();
    outputs.clear();
    records = 0;
    most_columns = 1;
  }

  /// `pages`: the sequence's, in device memory.
  void add(attend_args const& args, device_rows const& rows, std::uint32_t const* pages, model_shape const& shape,
           policy const& how, std::size_t multiprocessors) {
    int const group = shape.q_heads / shape.kv_heads, all = static_cast<int>(args.q.rows) * group;
    for (int first = 0; first < all; first += query_columns) {
      work_item of{};
      of.q = rows.q;
      of.first_column = first;
      of.columns = std::min(query_columns, all - first);
      of.position = static_cast<std::int32_t>(args.position(0));
      of.rotated = args.space == query_space::post_rope;
      of.softmax_scale = args.scale(static_cast<std::size_t>(shape.head_dim));
      most_columns = std::max(most_columns, of.columns);
      std::size_t const first_item = items.size();
      add_items(args, of, pages, shape, how, multiprocessors);
      add_outputs(args, rows, of, shape, first_item);
    }
  }

 private:
  /// The pages in splits, sinks and tail with the last.
  void add_items(attend_args const& args, work_item of, std::uint32_t const* page_ids, model_shape const& shape,
                 policy const& how, std::size_t multiprocessors) {
    layer_view const& cache = args.cache;
    auto const group = static_cast<std::size_t>(shape.q_heads / shape.kv_heads);
    std::size_t const sinks = cache.sink_k.rows, sealed_end = sinks + cache.sealed;
    std::size_t const seen_from = args.first_visible(args.position(static_cast<std::size_t>(of.first_column) / group));
    token_run pages = run_of(sinks, cache.sealed, seen_from, args.window);
    pages.pages = page_ids;
    auto const last = pages.first_tile + pages.tiles;
    auto const per_split = static_cast<std::int32_t>(how.tiles_per_split(
        static_cast<std::size_t>(pages.tiles), static_cast<std::size_t>(shape.kv_heads), multiprocessors));
    for (; last - pages.first_tile > per_split; pages.first_tile += per_split) {
      of.runs[0] = pages;
      of.runs[0].tiles = per_split;
      add_item(of, shape);
    }
    pages.tiles = last - pages.first_tile;
    of.runs[0] = pages;
    of.runs[1] = run_of(0, sinks, 0, 0);
    of.runs[2] = run_of(sealed_end, cache.tail_k.rows, seen_from, args.window);
    set_exact(of.runs[1], cache.sink_k, cache.sink_v);
    set_exact(of.runs[2], cache.tail_k, cache.tail_v);
    if (of.runs[0].tiles + of.runs[1].tiles + of.runs[2].tiles > 0) add_item(of, shape);
  }
  void add_item(work_item of, model_shape const& shape) {
    of.partial = records;
    records += static_cast<std::uint32_t>(shape.kv_heads * of.columns);
    items.push_back(of);
  }
  static void set_exact(token_run& it, view2d<half const> k, view2d<half const> v) {
    it.k = reinterpret_cast<std::uint16_t const*>(k.data);
    it.v = reinterpret_cast<std::uint16_t const*>(v.data);
  }
  /// `tokens` from position `base`, without the tiles that lie before `seen_from`.
  static token_run run_of(std::size_t base, std::size_t tokens, std::size_t seen_from, std::size_t window) {
    std::size_t const tiles = (tokens + page_tokens - 1) / page_tokens;
    std::size_t const first = seen_from > base ? std::min((seen_from - base) / page_tokens, tiles) : 0;
    return {.pages = nullptr,
            .k = nullptr,
            .v = nullptr,
            .first_tile = static_cast<std::int32_t>(first),
            .tiles = static_cast<std::int32_t>(tiles - first),
            .tokens = static_cast<std::int32_t>(tokens),
            .base = static_cast<std::int32_t>(base),
            .window = static_cast<std::int32_t>(window)};
  }

  void add_outputs(attend_args const& args, device_rows const& rows, work_item const& of, model_shape const& shape,
                   std::size_t first_item) {
    int const group = shape.q_heads / shape.kv_heads;
    auto const heads = static_cast<std::size_t>(shape.q_heads), d = static_cast<std::size_t>(shape.head_dim);
    for (int column = 0; column < of.columns; ++column)
      for (int kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
        int const index = of.first_column + column;
        std::size_t const at =
            static_cast<std::size_t>(index / group) * heads + static_cast<std::size_t>(kv_head * group + index % group);
        merge_item it{};
        it.first_item = static_cast<std::uint32_t>(first_item);
        it.items = static_cast<std::uint32_t>(items.size() - first_item);
        it.kv_head = kv_head;
        it.column = column;
        it.out = rows.out + at * d;
        it.score_max = args.score_max.empty() ? nullptr : rows.score_max + at;
        it.score_sum = args.score_sum.empty() ? nullptr : rows.score_sum + at;
        outputs.push_back(it);
      }
  }
};

}  // namespace kvquant::cuda
