#pragma once
/// \file
/// In which order a head's channels lie in a page: eight that follow each other have codes of one width.

#include <array>
#include <cstddef>
#include <cstdint>

#include "backends/cpu/eight_blocks.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/core/error.hpp"

namespace kvquant::cpu {

inline constexpr std::size_t largest_head_dim = 256;
/// What is packed together, with all of a page's tokens: eight blocks.
inline constexpr std::size_t chunk_channels = 8, most_chunks = largest_head_dim / chunk_channels;
static_assert(chunk_channels * page_tokens == block_codes);

/// Blocks of values are 16 channels × 4 tokens; where each channel has a width 8 × 8, for widths come in eights.
constexpr std::size_t channels_of_block(bool by_channel) { return by_channel ? 8 : 16; }
/// Consecutive tokens of a block, and the parts of a page that eight blocks are.
constexpr std::size_t tokens_of_block(std::size_t channels) { return block_bytes / channels; }
constexpr std::size_t parts_of_page(std::size_t channels) { return page_tokens / (8 * tokens_of_block(channels)); }

struct channel_order {
  std::array<std::uint8_t, largest_head_dim> at{};  ///< by place: keys [pairs], which pair; values [head_dim], which channel
  std::array<std::uint8_t, most_chunks> widths{};   ///< [head_dim / 8] bits of a chunk's codes
  std::array<std::uint16_t, most_chunks> starts{};  ///< [head_dim / 8] where they begin among the side's codes, in bytes
};

namespace detail {

/// By rising width, then by rising index. `units` share a width in chunks of `in_chunk`; `width_of(unit)`: 1 to 4.
/// Throws `bad_value` where a width has units that fill no chunk.
template <class WidthOf>
channel_order order_by_width(std::size_t units, std::size_t in_chunk, char const* what, WidthOf&& width_of) {
  channel_order out;
  std::size_t place = 0, start = 0;
  for (int width = 1; width <= 4; ++width) {
    for (std::size_t unit = 0; unit < units; ++unit) {
      if (width_of(unit) != width) continue;
      if (place % in_chunk == 0) {
        out.widths[place / in_chunk] = static_cast<std::uint8_t>(width);
        out.starts[place / in_chunk] = static_cast<std::uint16_t>(start);
        start += block_codes / 8 * static_cast<std::size_t>(width);
      }
      out.at[place++] = static_cast<std::uint8_t>(unit);
    }
    require(place % in_chunk == 0, errc::bad_value, what, " of ", width, " bits are ", place % in_chunk,
            " more than a multiple of ", in_chunk, " in a head, expected as many of each width as fill chunks of ",
            chunk_channels, " channels");
  }
  return out;
}

}  // namespace detail

/// Of the pairs that RoPE turns together. Throws `bad_value` for a pair of two widths, too.
inline channel_order key_order(page_geometry const& geometry) {
  return detail::order_by_width(geometry.head_dim / 2, chunk_channels / 2, "pairs of keys", [&](std::size_t pair) {
    if (geometry.k_widths == nullptr) return geometry.k_bits;
    auto const [first, second] = pair_of(geometry, pair);
    int const width = geometry.k_widths[first];
    require(geometry.k_widths[second] == width, errc::bad_value, "keys: channel ", first, " has ", width,
            " bits and channel ", second, ", which RoPE turns with it, ", int{geometry.k_widths[second]});
    return width;
  });
}

/// Of the channels.
inline channel_order value_order(page_geometry const& geometry) {
  return detail::order_by_width(geometry.head_dim, chunk_channels, "values", [&](std::size_t channel) {
    return geometry.v_widths == nullptr ? geometry.v_bits : int{geometry.v_widths[channel]};
  });
}

}  // namespace kvquant::cpu
