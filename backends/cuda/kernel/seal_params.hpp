#pragma once
/// \file
/// What the kernels that append are given: plain values and pointers into memory that the device reads.

#include <cstddef>
#include <cstdint>

#include "backends/cuda/fragment_order.hpp"
#include "backends/cuda/slab_shape.hpp"
#include "kvquant/format/level_table.hpp"
#include "kvquant/quantize/affine.hpp"

namespace kvquant::cuda {

/// Tokens of one layer, binary16 [rows, kv_channels]: those of the tail, then new ones.
struct appended_rows {
  std::uint16_t const *tail_k, *tail_v;
  std::uint16_t const *new_k, *new_v;
  std::uint32_t tail, channels;

  KVQ_HD constexpr std::uint16_t const* k(std::uint32_t row) const { return at(tail_k, new_k, row); }
  KVQ_HD constexpr std::uint16_t const* v(std::uint32_t row) const { return at(tail_v, new_v, row); }

 private:
  KVQ_HD constexpr std::uint16_t const* at(std::uint16_t const* old, std::uint16_t const* more,
                                           std::uint32_t row) const {
    return row < tail ? old + std::size_t{row} * channels : more + std::size_t{row - tail} * channels;
  }
};

/// New tokens as they come, [rows, channels].
template <class T>
struct incoming_rows {
  T const *k, *v;
  std::size_t k_stride, v_stride;  ///< elements
  std::uint32_t channels;
  std::uint16_t *to_k, *to_v;  ///< binary16 [rows, channels]
  std::uint32_t* refused;      ///< becomes the least row that binary16 cannot hold
};

struct range_params {
  appended_rows rows;
  std::uint32_t per_side;  ///< outliers at each end of a token
  value_range* ranges;     ///< [rows that are sealed]
};

/// From the least to the greatest value.
struct seen_range {
  float low, high;
};

template <int Bits>
struct seal_levels {
  level_table<Bits> k, v;
};
template <>
struct seal_levels<16> {};

/// What channels have of their own on one side, [kv_channels]. Of formats that are `by_channel`.
struct channel_quantizers {
  affine const* maps;
  level_table<4> const* tables;
  std::uint16_t const* table_of;  ///< which table a channel has
  seen_range const* seen;         ///< what is beyond is counted; null: nothing is
  std::uint64_t* clamped;         ///< how many values were
};
template <>
struct seal_levels<by_width> {
  channel_quantizers k, v;
};

template <int Bits>
struct seal_params {
  appended_rows rows;
  seal_levels<Bits> levels;
  affine const* key_maps;                      ///< [kv_channels]; widths by channel have them in `levels`
  float const *k_sensitivity, *v_sensitivity;  ///< [kv_channels]
  value_range const* ranges;                   ///< [rows that are sealed], where tokens have ranges
  head_channels channels;                      ///< its widths, if any: [kv_heads]
  int head_dim;
  std::uint32_t k_slots, v_slots;  ///< of a page
  fragment_offsets offsets;
  std::size_t page_bytes;
  std::uint32_t const* blocks;  ///< [grid.x]
  std::byte* slab;              ///< [blocks of the pool, kv_heads, page_bytes]
  std::byte const* before;      ///< a page of which the first one keeps `reused` tokens, [kv_heads, page_bytes]
  std::uint32_t reused;

  KVQ_HD constexpr int elements() const { return slab_tokens * slabs_per_page * head_dim; }
};

struct settle_params {
  appended_rows rows;
  std::uint16_t const *from_k, *from_v;  ///< the new tokens that become sinks
  std::uint16_t *sink_k, *sink_v;        ///< where they go
  std::uint32_t to_sinks;
  std::uint16_t *tail_k, *tail_v;  ///< the tail, of which and of the new tokens
  std::uint32_t gone, tail;        ///< the first `gone` are in pages now and the next `tail` stay
};

}  // namespace kvquant::cuda
