#pragma once
/// \file
/// How pages lie for vector kernels of any width: codes in the order in which products of four bytes consume them.
///
/// Keys: 64 bytes are 16 tokens × 2 rotary pairs, a token's four codes side by side. Eight such blocks, 2 × 2 pairs by
/// the page's 4 × 16 tokens, are packed together. Values: 64 bytes are 16 channels × 4 tokens, a channel's four codes
/// side by side; eight blocks are 32 tokens. Then the ranges' lower ends, their upper ends, and the slots,
/// under other indices than in the canonical page.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "backends/cpu/eight_blocks.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant::cpu {

/// The two channels of a head that RoPE turns together; those that it does not turn are paired with their neighbours.
struct channel_pair {
  std::size_t first, second;
};

inline channel_pair pair_of(page_geometry const& geometry, std::size_t pair) {
  std::size_t const turned = geometry.rotary_dim / 2;
  if (pair < turned && geometry.pairing == rope_pairing::half_split) return {pair, pair + turned};
  return {2 * pair, 2 * pair + 1};
}

/// Where a page's parts start, in bytes from its own start.
struct quad_offsets {
  std::size_t v_codes, lowers, uppers, k_slots, v_slots, end;

  explicit quad_offsets(page_geometry const& it)
      : v_codes(it.k_code_bytes()),
        lowers(v_codes + it.v_code_bytes()),
        uppers(lowers + page_tokens * sizeof(half)),
        k_slots(uppers + page_tokens * sizeof(half)),
        v_slots(k_slots + it.k_slots * sizeof(outlier)),
        end(v_slots + it.v_slots * sizeof(outlier)) {}
};

/// How a key's slot is named: by which of a pair it is (1 bit), the pair (7 bits), then its token. Neighbours by rising
/// index are different tokens, so that a kernel does not add to the same score twice in a row.
struct key_slot {
  static constexpr std::size_t most_pairs = 128;
  static constexpr std::size_t token(std::size_t index) { return index % page_tokens; }
  static constexpr std::size_t member(std::size_t index) { return index / page_tokens; }  ///< pair, + most_pairs
  static constexpr std::size_t partner(std::size_t member) { return member ^ most_pairs; }
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

/// For codes of 2, 3 and 4 bits.
template <PackedSpec S>
struct quad_layout {
  using spec_type = S;
  static constexpr std::string_view name = "quad";
  static constexpr int k_bits = S::key_format::bits, v_bits = S::value_format::bits;

  static std::size_t page_bytes(page_geometry const& geometry) { return geometry.page_bytes(); }

  static void write(page_geometry const& geometry, canonical_page<S> const& page, std::span<std::byte> bytes) {
    check(geometry, bytes.size());
    quad_offsets const at(geometry);
    auto* const to = reinterpret_cast<std::uint8_t*>(bytes.data());
    blocks_type blocks;
    for (std::size_t chunk = 0; chunk < geometry.head_dim / 8; ++chunk) {
      for_each_key(geometry, chunk, [&](std::size_t i, std::size_t element) { blocks[i] = page.k_codes[element]; });
      pack_blocks<k_bits>(blocks, to + chunk * packed_block_bytes<k_bits>);
    }
    for (std::size_t unit = 0; unit < geometry.head_dim / 8; ++unit) {
      for_each_value(geometry, unit, [&](std::size_t i, std::size_t element) { blocks[i] = page.v_codes[element]; });
      pack_blocks<v_bits>(blocks, to + at.v_codes + unit * packed_block_bytes<v_bits>);
    }
    for (std::size_t token = 0; token < page_tokens; ++token) {
      store(to + at.lowers, token, page.v_ranges[token].lower);
      store(to + at.uppers, token, page.v_ranges[token].upper);
    }
    write_slots<key_slot>(geometry, page.k_slots, to + at.k_slots);
    write_slots<value_slot>(geometry, page.v_slots, to + at.v_slots);
    std::fill(to + at.end, to + bytes.size(), std::uint8_t{0});
  }

  static void read(page_geometry const& geometry, std::span<std::byte const> bytes, canonical_page<S>& page) {
    check(geometry, bytes.size());
    quad_offsets const at(geometry);
    auto const* const from = reinterpret_cast<std::uint8_t const*>(bytes.data());
    blocks_type blocks;
    for (std::size_t chunk = 0; chunk < geometry.head_dim / 8; ++chunk) {
      unpack_blocks<k_bits>(from + chunk * packed_block_bytes<k_bits>, blocks);
      for_each_key(geometry, chunk, [&](std::size_t i, std::size_t element) { page.k_codes[element] = blocks[i]; });
    }
    for (std::size_t unit = 0; unit < geometry.head_dim / 8; ++unit) {
      unpack_blocks<v_bits>(from + at.v_codes + unit * packed_block_bytes<v_bits>, blocks);
      for_each_value(geometry, unit, [&](std::size_t i, std::size_t element) { page.v_codes[element] = blocks[i]; });
    }
    for (std::size_t token = 0; token < page_tokens; ++token)
      page.v_ranges[token] = {load<half>(from + at.lowers, token), load<half>(from + at.uppers, token)};
    read_slots<key_slot>(geometry, page.k_slots, from + at.k_slots);
    read_slots<value_slot>(geometry, page.v_slots, from + at.v_slots);
  }

 private:
  using blocks_type = std::array<std::uint8_t, block_codes>;

  static void check(page_geometry const& geometry, std::size_t bytes) {
    require(bytes == page_bytes(geometry), errc::bad_shape, "page: ", bytes, " bytes, expected ", page_bytes(geometry));
  }

  /// `f(place within the eight blocks, element of the page)`. Chunk: four pairs of channels, all tokens.
  template <class F>
  static void for_each_key(page_geometry const& geometry, std::size_t chunk, F&& f) {
    for (std::size_t pair = 0; pair < 4; ++pair) {
      auto const [first, second] = pair_of(geometry, 4 * chunk + pair);
      for (std::size_t token = 0; token < page_tokens; ++token) {
        std::size_t const i = (pair / 2 * 4 + token / 16) * 64 + token % 16 * 4 + pair % 2 * 2;
        f(i, token * geometry.head_dim + first);
        f(i + 1, token * geometry.head_dim + second);
      }
    }
  }
  /// Unit: sixteen channels, half of the tokens.
  template <class F>
  static void for_each_value(page_geometry const& geometry, std::size_t unit, F&& f) {
    std::size_t const first_channel = unit / 2 * 16, first_token = unit % 2 * 32;
    for (std::size_t token = 0; token < 32; ++token)
      for (std::size_t channel = 0; channel < 16; ++channel)
        f(token / 4 * 64 + channel * 4 + token % 4,
          (first_token + token) * geometry.head_dim + first_channel + channel);
  }

  template <class Slot>
  static void write_slots(page_geometry const& geometry, std::span<outlier const> slots, std::uint8_t* to) {
    auto* const out = reinterpret_cast<outlier*>(to);
    std::transform(slots.begin(), slots.end(), out, [&](outlier it) {
      return outlier{static_cast<std::uint16_t>(Slot::encode(geometry, it.index)), it.residual};
    });
    std::sort(out, out + slots.size(), by_index);
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
