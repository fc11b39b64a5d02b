#pragma once
/// \file
/// How pages lie for vector kernels of any width: codes in the order in which products of four bytes consume them.
///
/// Keys: 64 bytes are 16 tokens × 2 rotary pairs, a token's four codes side by side. Eight such blocks, 2 × 2 pairs by
/// the page's 4 × 16 tokens, are packed together. Values: 64 bytes are 16 channels × 4 tokens, a channel's four codes
/// side by side; eight blocks are half of the tokens. Where channels have widths of their own both sides are ordered by
/// them, and 64 bytes are 8 channels × 8 tokens. Then the ranges' lower ends, their upper ends, and the slots, under
/// other indices than in the canonical page.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <string_view>
#include <type_traits>

#include "backends/cpu/eight_blocks.hpp"
#include "kvquant/cache/channel_order.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant::cpu {

static_assert(chunk_channels * page_tokens == block_codes);  // eight blocks

/// Blocks of values are 16 channels × 4 tokens; where each channel has a width 8 × 8, for widths come in eights.
constexpr std::size_t channels_of_block(bool by_channel) { return by_channel ? 8 : 16; }
/// Consecutive tokens of a block, and the parts of a page that eight blocks are.
constexpr std::size_t tokens_of_block(std::size_t channels) { return block_bytes / channels; }
constexpr std::size_t parts_of_page(std::size_t channels) { return page_tokens / (8 * tokens_of_block(channels)); }

/// Where a page's parts start, in bytes from its own start.
struct quad_offsets {
  std::size_t v_codes, lowers, uppers, k_slots, v_slots, end;

  explicit quad_offsets(page_geometry const& it)
      : v_codes(it.k_code_bytes()),
        lowers(v_codes + it.v_code_bytes()),
        uppers(lowers + it.range_bytes() / 2),
        k_slots(uppers + it.range_bytes() / 2),
        v_slots(k_slots + it.k_slots * sizeof(outlier)),
        end(v_slots + it.v_slots * sizeof(outlier)) {}
};

/// How a key's slot is named: by which of a pair it is (1 bit), the pair (7 bits), then its token. Neighbours by rising
/// index are different tokens, so that a kernel does not add to the same score twice in a row.
struct key_slot {
  static constexpr std::size_t most_pairs = 128;
  static constexpr std::size_t token(std::size_t index) { return index % page_tokens; }
  static constexpr std::size_t member(std::size_t index) { return index / page_tokens; }  ///< pair, + most_pairs
  /// Pair and token alone.
  static constexpr std::size_t angle(std::size_t index) { return index % (most_pairs * page_tokens); }
  static std::size_t encode(page_geometry const& geometry, std::size_t element) {
    std::size_t const channel = element % geometry.head_dim, turned = geometry.rotary_dim / 2;
    bool const split = channel < 2 * turned && geometry.pairing == rope_pairing::half_split;
    std::size_t const pair = !split ? channel / 2 : channel % turned, second = split ? channel / turned : channel % 2;
    return (second * most_pairs + pair) * page_tokens + element / geometry.head_dim;
  }
  static std::size_t decode(page_geometry const& geometry, std::size_t index) {
    auto const [first, second] = pair_of(geometry, member(index) % most_pairs);
    return token(index) * geometry.head_dim + (member(index) < most_pairs ? first : second);
  }
};
/// A value's slot: its token, then its channel, a byte each. Neighbours are different channels.
struct value_slot {
  static constexpr std::size_t token(std::size_t index) { return index / 256; }
  static constexpr std::size_t channel(std::size_t index) { return index % 256; }
  static std::size_t encode(page_geometry const& geometry, std::size_t element) {
    return element / geometry.head_dim * 256 + element % geometry.head_dim;
  }
  static std::size_t decode(page_geometry const& geometry, std::size_t index) {
    return token(index) * geometry.head_dim + channel(index);
  }
};

/// For codes of 1 to 4 bits.
template <PackedSpec S>
struct quad_layout {
  using spec_type = S;
  using key_format = typename S::key_format;
  using value_format = typename S::value_format;
  static constexpr std::string_view name = "quad";

  static std::size_t page_bytes(page_geometry const& geometry) { return geometry.page_bytes(); }

  static void write(page_geometry const& geometry, canonical_page<S> const& page, std::span<std::byte> bytes) {
    check(geometry, bytes.size());
    quad_offsets const at(geometry);
    auto* const to = reinterpret_cast<std::uint8_t*>(bytes.data());
    write_keys(geometry, page.k_codes, to);
    write_values(geometry, page.v_codes, to + at.v_codes);
    for (std::size_t token = 0; has_ranges && token < page_tokens; ++token) {
      store(to + at.lowers, token, page.v_ranges[token].lower);
      store(to + at.uppers, token, page.v_ranges[token].upper);
    }
    write_key_slots(geometry, page.k_slots, reinterpret_cast<outlier*>(to + at.k_slots));
    write_value_slots(geometry, page.v_slots, reinterpret_cast<outlier*>(to + at.v_slots));
    std::fill(to + at.end, to + bytes.size(), std::uint8_t{0});
  }

  static void read(page_geometry const& geometry, std::span<std::byte const> bytes, canonical_page<S>& page) {
    check(geometry, bytes.size());
    quad_offsets const at(geometry);
    auto const* const from = reinterpret_cast<std::uint8_t const*>(bytes.data());
    read_keys(geometry, from, page.k_codes);
    read_values(geometry, from + at.v_codes, page.v_codes);
    for (std::size_t token = 0; has_ranges && token < page_tokens; ++token)
      page.v_ranges[token] = {load<half>(from + at.lowers, token), load<half>(from + at.uppers, token)};
    read_slots<key_slot>(geometry, page.k_slots, from + at.k_slots);
    read_slots<value_slot>(geometry, page.v_slots, from + at.v_slots);
  }

 private:
  using blocks_type = std::array<std::uint8_t, block_codes>;
  static constexpr bool has_ranges = !is_by_channel<value_format>;

  static void check(page_geometry const& geometry, std::size_t bytes) {
    require(bytes == page_bytes(geometry), errc::bad_shape, "page: ", bytes, " bytes, expected ", page_bytes(geometry));
  }

  /// `f(bits)` as a constant: of the chunk where channels have widths of their own.
  template <Format F, class Function>
  static void with_width_of(channel_order const& order, std::size_t chunk, Function&& f) {
    if constexpr (is_by_channel<F>)
      with_width(order.widths[chunk], f);
    else
      f(std::integral_constant<int, F::bits>{});
  }
  template <Format F>
  static void pack_chunk(channel_order const& order, std::size_t chunk, blocks_type const& blocks, std::uint8_t* side) {
    with_width_of<F>(order, chunk, [&](auto bits) { pack_blocks<bits()>(blocks, side + order.starts[chunk]); });
  }
  template <Format F>
  static void unpack_chunk(channel_order const& order, std::size_t chunk, std::uint8_t const* side,
                           blocks_type& blocks) {
    with_width_of<F>(order, chunk, [&](auto bits) { unpack_blocks<bits()>(side + order.starts[chunk], blocks); });
  }

  /// Keys of a page with the codes of a pair side by side: [page_tokens, head_dim].
  using paired_codes = std::array<std::uint8_t, page_tokens * largest_head_dim>;

  /// `f(place in a row of pairs, channel)` for all channels of a head.
  template <class F>
  static void for_each_paired(page_geometry const& geometry, channel_order const& order, F&& f) {
    std::size_t const d = geometry.head_dim;
    if constexpr (is_by_channel<key_format>) {
      for (std::size_t place = 0; place < d / 2; ++place) {
        auto const [first, second] = pair_of(geometry, order.at[place]);
        f(2 * place, first);
        f(2 * place + 1, second);
      }
    } else {  // in the order of the pairs
      std::size_t const split = geometry.pairing == rope_pairing::half_split ? geometry.rotary_dim / 2 : 0;
      for (std::size_t pair = 0; pair < split; ++pair) {
        f(2 * pair, pair);
        f(2 * pair + 1, split + pair);
      }
      for (std::size_t channel = 2 * split; channel < d; ++channel) f(channel, channel);
    }
  }
  /// Where the codes of two pairs and one token, four bytes, are in eight blocks, and in the rows of pairs.
  static std::size_t in_blocks(std::size_t pairs, std::size_t token) { return pairs * 4 * block_bytes + token * 4; }
  static std::size_t in_rows(std::size_t d, std::size_t chunk, std::size_t pairs, std::size_t token) {
    return token * d + chunk * chunk_channels + pairs * 4;
  }

  static void write_keys(page_geometry const& geometry, std::span<std::uint8_t const> codes, std::uint8_t* to) {
    std::size_t const d = geometry.head_dim;
    channel_order const order = key_order(geometry);
    alignas(block_bytes) paired_codes rows;
    for (std::size_t first = 0; first < page_tokens * d; first += d)
      for_each_paired(geometry, order,
                      [&](std::size_t place, std::size_t channel) { rows[first + place] = codes[first + channel]; });
    alignas(block_bytes) blocks_type blocks;
    for (std::size_t chunk = 0; chunk < d / chunk_channels; ++chunk) {  // four pairs of channels, all tokens
      for (std::size_t pairs = 0; pairs < 2; ++pairs)
        for (std::size_t token = 0; token < page_tokens; ++token)
          std::memcpy(blocks.data() + in_blocks(pairs, token), rows.data() + in_rows(d, chunk, pairs, token), 4);
      pack_chunk<key_format>(order, chunk, blocks, to);
    }
  }
  static void read_keys(page_geometry const& geometry, std::uint8_t const* from, std::span<std::uint8_t> codes) {
    std::size_t const d = geometry.head_dim;
    channel_order const order = key_order(geometry);
    alignas(block_bytes) paired_codes rows;
    alignas(block_bytes) blocks_type blocks;
    for (std::size_t chunk = 0; chunk < d / chunk_channels; ++chunk) {
      unpack_chunk<key_format>(order, chunk, from, blocks);
      for (std::size_t pairs = 0; pairs < 2; ++pairs)
        for (std::size_t token = 0; token < page_tokens; ++token)
          std::memcpy(rows.data() + in_rows(d, chunk, pairs, token), blocks.data() + in_blocks(pairs, token), 4);
    }
    for (std::size_t first = 0; first < page_tokens * d; first += d)
      for_each_paired(geometry, order,
                      [&](std::size_t place, std::size_t channel) { codes[first + channel] = rows[first + place]; });
  }

  /// `f(place in eight blocks, element of the page)` for a unit of eight blocks.
  template <class F>
  static void for_each_value(std::size_t d, channel_order const& order, std::size_t unit, F&& f) {
    constexpr std::size_t channels = channels_of_block(is_by_channel<value_format>), parts = parts_of_page(channels);
    constexpr std::size_t tokens = tokens_of_block(channels);
    std::size_t const first_token = unit % parts * 8 * tokens, first_place = unit / parts * channels;
    for (std::size_t block = 0; block < 8; ++block)
      for (std::size_t i = 0; i < channels; ++i) {
        std::size_t const place = first_place + i, channel = is_by_channel<value_format> ? order.at[place] : place;
        for (std::size_t token = 0; token < tokens; ++token)
          f(block * block_bytes + i * tokens + token, (first_token + block * tokens + token) * d + channel);
      }
  }
  static void write_values(page_geometry const& geometry, std::span<std::uint8_t const> codes, std::uint8_t* to) {
    channel_order const order = value_order(geometry);
    alignas(block_bytes) blocks_type blocks;
    for (std::size_t unit = 0; unit < geometry.head_dim / 8; ++unit) {
      for_each_value(geometry.head_dim, order, unit,
                     [&](std::size_t place, std::size_t element) { blocks[place] = codes[element]; });
      pack_chunk<value_format>(order, unit, blocks, to);
    }
  }
  static void read_values(page_geometry const& geometry, std::uint8_t const* from, std::span<std::uint8_t> codes) {
    channel_order const order = value_order(geometry);
    alignas(block_bytes) blocks_type blocks;
    for (std::size_t unit = 0; unit < geometry.head_dim / 8; ++unit) {
      unpack_chunk<value_format>(order, unit, from, blocks);
      for_each_value(geometry.head_dim, order, unit,
                     [&](std::size_t place, std::size_t element) { codes[element] = blocks[place]; });
    }
  }

  /// `f(token, channel, residual)`; slots come by rising token, then channel.
  template <class F>
  static void for_each_slot(std::size_t d, std::span<outlier const> slots, F&& f) {
    std::size_t token = 0, first = 0;
    for (outlier const it : slots) {
      for (; it.index >= first + d; first += d) ++token;
      f(token, it.index - first, it.residual);
    }
  }
  /// Tokens of a member rise already; members are counted.
  static void write_key_slots(page_geometry const& geometry, std::span<outlier const> slots, outlier* to) {
    std::size_t const d = geometry.head_dim;
    std::array<std::uint16_t, 256> member_of;  // by channel
    for (std::size_t pair = 0; pair < d / 2; ++pair) {
      auto const [first, second] = pair_of(geometry, pair);
      member_of[first] = static_cast<std::uint16_t>(pair);
      member_of[second] = static_cast<std::uint16_t>(key_slot::most_pairs + pair);
    }
    std::array<std::uint32_t, 2 * key_slot::most_pairs> at{};
    for_each_slot(d, slots, [&](std::size_t, std::size_t channel, half) { ++at[member_of[channel]]; });
    std::exclusive_scan(at.begin(), at.end(), at.begin(), std::uint32_t{0});
    for_each_slot(d, slots, [&](std::size_t token, std::size_t channel, half residual) {
      std::size_t const member = member_of[channel];
      to[at[member]++] = {static_cast<std::uint16_t>(member * page_tokens + token), residual};
    });
  }
  /// In their order already.
  static void write_value_slots(page_geometry const& geometry, std::span<outlier const> slots, outlier* to) {
    for_each_slot(geometry.head_dim, slots, [&](std::size_t token, std::size_t channel, half residual) {
      *to++ = {static_cast<std::uint16_t>(token * 256 + channel), residual};
    });
  }
  template <class Slot>
  static void read_slots(page_geometry const& geometry, std::span<outlier> slots, std::uint8_t const* from) {
    auto const* const in = reinterpret_cast<outlier const*>(from);
    std::transform(in, in + slots.size(), slots.begin(), [&](outlier it) {
      return outlier{static_cast<std::uint16_t>(Slot::decode(geometry, it.index)), it.residual};
    });
    std::sort(slots.begin(), slots.end(), by_index);
  }
  static bool by_index(outlier a, outlier b) { return a.index < b.index; }

  template <class T>
  static T load(std::uint8_t const* from, std::size_t i) {
    T x;
    std::memcpy(&x, from + i * sizeof(T), sizeof(T));
    return x;
  }
  template <class T>
  static void store(std::uint8_t* to, std::size_t i, T x) {
    std::memcpy(to + i * sizeof(T), &x, sizeof(T));
  }
};

}  // namespace kvquant::cpu
