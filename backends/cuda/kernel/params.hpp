#pragma once
/// \file
/// What the kernels are given: plain values and pointers into device memory, for the host and the device alike.

#include <cstddef>
#include <cstdint>

#include "backends/cuda/slab_shape.hpp"

namespace kvquant::cuda {

/// Turns about one angle; 8 bytes, as the device loads them.
struct alignas(8) turn {
  float cos, sin;
};
/// Four words of a register each; 16 bytes, as the device loads them.
struct alignas(16) four_words {
  std::uint32_t x, y, z, w;
};

/// Of one model. Pairs are those of `pair_of`, those that RoPE does not turn included, with angle 0.
struct model_tables {
  int kv_heads, group;           ///< group: query heads of a KV head
  int turned_pairs;              ///< that RoPE turns
  bool half_split;               ///< how those are paired
  float attention_factor;        ///< of the queries; the keys' is in `key_angles`
  turn const* page_turns;        ///< [pages, head_dim / 2]: by 64 i tokens
  turn const* token_turns;       ///< [64, head_dim / 2]: by i tokens
  four_words const* key_angles;  ///< [4 slabs, head_dim / 16, 32 lanes]: halves of cosine, sine of the lane's two pairs
                                 ///< and row g, then of row g + 8, as binary16
};

/// Of one layer.
struct layer_tables {
  std::uint32_t const* levels;  ///< of keys, then of values: at 4 bits [2, 256] pairs of levels, at 2 and 3 bits
                                ///< [2, 32 lanes, 4]: the low bytes of 8 levels, their high bytes; of widths by
                                ///< channel [kv_heads] tables of a head (`width_offsets.hpp`)
  four_words const* key_maps;   ///< [kv_heads, head_dim / 16, 4]: scales, zeros of two firsts, then of their seconds
  float const* key_units;       ///< [kv_heads]: what keys are divided by to be well inside binary16
  float const* value_units;     ///< [kv_heads]: the same of values, of widths by channel
};

/// Consecutive tokens of one sequence that are stored alike: pages, or exact tokens.
struct token_run {
  std::uint32_t const* pages;      ///< ids, from the run's first page; null for exact tokens
  std::uint16_t const *k, *v;      ///< exact tokens, binary16 [tokens of the run, kv_channels]
  std::int32_t first_tile, tiles;  ///< of 64 tokens, counted from the run's first; 0 tiles: nothing
  std::int32_t tokens;             ///< of the run
  std::int32_t base;               ///< position of the run's first token
  std::int32_t window;             ///< tokens that a query sees, 0: all
};

/// What one block of threads does for one KV head: some queries of a sequence over parts of its runs.
struct work_item {
  token_run runs[3];                   ///< some pages; of the last of a sequence, sinks and tail
  float const* q;                      ///< [rows, q_heads · head_dim], from the sequence's first query
  std::int32_t first_column, columns;  ///< columns are (row, head of the group), rows first; at most `query_columns`
  std::int32_t position;               ///< of row 0
  bool rotated;                        ///< the queries are behind RoPE already
  float softmax_scale;
  std::uint32_t partial;  ///< first of [kv_heads, columns] records
};

/// m (in powers of 2), l, o [head_dim] of one split and one column.
KVQ_HD constexpr std::size_t partial_floats(int head_dim) { return static_cast<std::size_t>(head_dim) + 2; }

struct attend_params {
  model_tables model;
  layer_tables layer;
  work_item const* items;  ///< [grid.x]
  std::byte const* slab;   ///< [blocks of the pool, kv_heads, page_bytes]
  std::size_t page_bytes;
  fragment_offsets offsets;
  std::uint32_t columns;          ///< 1, 2, 4 or 8: at least those of every item
  std::uint32_t tiles_per_chunk;  ///< whose queries are in shared memory together
  float* partials;
};

/// One (row, head) of the output and the splits that it is merged from.
struct merge_item {
  std::uint32_t first_item, items;  ///< work items, in the order of their tokens
  std::int32_t kv_head, column;     ///< column within the items
  float* out;                       ///< [head_dim]
  float *score_max, *score_sum;     ///< or null
};

struct merge_params {
  work_item const* items;
  merge_item const* outputs;  ///< [grid.x]
  float const* partials;
  int head_dim;
};

}  // namespace kvquant::cuda
