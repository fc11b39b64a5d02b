#pragma once
/// \file
/// In which order a head's channels lie in a page: eight that follow each other have codes of one width.

#include <algorithm>
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <tuple>

#include "kvquant/cache/page.hpp"
#include "kvquant/core/error.hpp"

namespace kvquant {

/// Of what pages can hold.
inline constexpr std::size_t largest_head_dim = 256;
/// What is packed together, with all of a page's tokens, or some of them.
inline constexpr std::size_t chunk_channels = 8, most_chunks = largest_head_dim / chunk_channels;

/// The order in which a page has a side's channels where they have widths of their own.
struct channel_order {
  /// By place: keys [pairs], which pair; values [head_dim], which channel.
  std::array<std::uint8_t, largest_head_dim> at{};
  /// [head_dim / 8] bits of a chunk's codes.
  std::array<std::uint8_t, most_chunks> widths{};
  /// [head_dim / 8] where they begin among the side's codes, in bytes, if whole pages of a chunk follow each other.
  std::array<std::uint16_t, most_chunks> starts{};
};

namespace detail {

/// Of a page's codes of a chunk, for each of their bits.
inline constexpr std::size_t chunk_bytes = chunk_channels * page_tokens / 8;

/// What channels that lie together have in common.
struct kind_of_codes {
  int width;  ///< 1 to 4
  std::size_t table;
  friend auto operator<=>(kind_of_codes const&, kind_of_codes const&) = default;
};

/// By rising width, then by table, then by index. `units` share a width in chunks of `in_chunk`. Throws `bad_value`
/// where a width has units that fill no chunk.
template <class KindOf>
channel_order order_by_kind(std::size_t units, std::size_t in_chunk, char const* what, KindOf&& kind_of) {
  channel_order out;
  std::array<kind_of_codes, largest_head_dim> kinds;
  for (std::size_t unit = 0; unit < units; ++unit) {
    kinds[unit] = kind_of(unit);
    out.at[unit] = static_cast<std::uint8_t>(unit);
  }
  std::sort(out.at.begin(), out.at.begin() + static_cast<std::ptrdiff_t>(units),
            [&](std::uint8_t a, std::uint8_t b) { return std::tie(kinds[a], a) < std::tie(kinds[b], b); });
  std::size_t start = 0;
  for (std::size_t place = 0; place < units; ++place) {
    std::size_t const chunk = place / in_chunk;
    auto const width = static_cast<std::uint8_t>(kinds[out.at[place]].width);
    if (place % in_chunk == 0) {
      out.widths[chunk] = width;
      out.starts[chunk] = static_cast<std::uint16_t>(start);
      start += chunk_bytes * width;
    }
    require(out.widths[chunk] == width, errc::bad_value, what, " of ", int{out.widths[chunk]},
            " bits are no multiple of ", in_chunk, " in a head, expected as many of each width as fill chunks of ",
            chunk_channels, " channels");
  }
  return out;
}

/// Of units that all have one width and one table.
inline channel_order own_order(std::size_t units, std::size_t in_chunk, int width) {
  channel_order out;
  std::iota(out.at.begin(), out.at.begin() + static_cast<std::ptrdiff_t>(units), std::uint8_t{0});
  for (std::size_t chunk = 0; chunk < units / in_chunk; ++chunk) {
    out.widths[chunk] = static_cast<std::uint8_t>(width);
    out.starts[chunk] = static_cast<std::uint16_t>(chunk * chunk_bytes * out.widths[chunk]);
  }
  return out;
}

}  // namespace detail

/// Of the pairs that RoPE turns together. Throws `bad_value` for a pair of two widths, too.
inline channel_order key_order(page_geometry const& geometry) {
  if (geometry.k_widths == nullptr)
    return detail::own_order(geometry.head_dim / 2, chunk_channels / 2, geometry.k_bits);
  return detail::order_by_kind(geometry.head_dim / 2, chunk_channels / 2, "pairs of keys", [&](std::size_t pair) {
    auto const [first, second] = pair_of(geometry, pair);
    int const width = geometry.k_widths[first];
    require(geometry.k_widths[second] == width, errc::bad_value, "keys: channel ", first, " has ", width,
            " bits and channel ", second, ", which RoPE turns with it, ", int{geometry.k_widths[second]});
    return detail::kind_of_codes{width, geometry.k_tables[first]};
  });
}

/// Of the channels.
inline channel_order value_order(page_geometry const& geometry) {
  if (geometry.v_widths == nullptr) return detail::own_order(geometry.head_dim, chunk_channels, geometry.v_bits);
  return detail::order_by_kind(geometry.head_dim, chunk_channels, "values", [&](std::size_t channel) {
    return detail::kind_of_codes{geometry.v_widths[channel], geometry.v_tables[channel]};
  });
}

}  // namespace kvquant
