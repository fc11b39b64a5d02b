#pragma once
/// \file
/// Which elements of a page are where in a slab, for the host and the device alike.

#include <cstddef>
#include <cstdint>

#include "backends/cuda/quartets.hpp"
#include "backends/cuda/slab_shape.hpp"
#include "kvquant/core/config.hpp"

namespace kvquant::cuda {

/// In which order a head's channels lie. Those of a key pair up (see `pair_of`) and are called as members of pairs: the
/// pair's place, and `second_member` more for its second. For at most 256 channels.
struct head_channels {
  int turned = 0;                       ///< pairs that RoPE turns
  bool half_split = false;              ///< how those are paired
  head_widths const* widths = nullptr;  ///< of channels that are ordered by width; null: as they are

  KVQ_HD constexpr int channel_of(int member) const {
    int const place = member % second_member, second = member / second_member;
    int const pair = widths != nullptr ? widths->pair_at[place] : place;
    return half_split && pair < turned ? pair + second * turned : 2 * pair + second;
  }
  KVQ_HD constexpr int member_of(int channel) const {
    bool const split = half_split && channel < 2 * turned;
    int const pair = split ? channel % turned : channel / 2, second = split ? channel / turned : channel % 2;
    return (widths != nullptr ? widths->place_of_pair[pair] : pair) + second * second_member;
  }
  KVQ_HD constexpr int value_at(int place) const { return widths != nullptr ? widths->channel_at[place] : place; }
  KVQ_HD constexpr int place_of_value(int channel) const {
    return widths != nullptr ? widths->place_of_channel[channel] : channel;
  }
};

/// Which element of a page, token · head_dim + channel, is the `i`-th of the eight that a lane has of a fragment: of
/// keys the two of a pair are in one lane.
KVQ_HD constexpr int key_element(head_channels const& channels, int head_dim, int slab, int fragment, int lane, int i) {
  int const token = slab * slab_tokens + lane / 4 + i / 2 % 2 * 8, pair = fragment * 8 + lane % 4 * 2 + i % 2;
  return token * head_dim + channels.channel_of(pair + (i < 4 ? 0 : second_member));
}
/// Values are turned about the diagonal.
KVQ_HD constexpr int value_element(head_channels const& channels, int head_dim, int slab, int fragment, int lane,
                                   int i) {
  int const token = slab * slab_tokens + lane % 4 * 2 + i / 4 * 8 + i % 2;
  return token * head_dim + channels.value_at(fragment * 16 + lane / 4 + i / 2 % 2 * 8);
}

/// The place of a page's element among those of its slab, [fragment, lane, 8], and what is there.
KVQ_HD constexpr std::uint16_t key_place(head_channels const& channels, int head_dim, int element) {
  int const token = element / head_dim % slab_tokens, member = channels.member_of(element % head_dim);
  int const pair = member % second_member, second = member / second_member;
  int const lane = token % 8 * 4 + pair % 8 / 2, i = second * 4 + token / 8 * 2 + pair % 2;
  return static_cast<std::uint16_t>((pair / 8 * warp_lanes + lane) * 8 + i);
}
KVQ_HD constexpr std::uint16_t value_place(head_channels const& channels, int head_dim, int element) {
  int const token = element / head_dim % slab_tokens, place = channels.place_of_value(element % head_dim);
  int const lane = place % 8 * 4 + token % 8 / 2, i = token / 8 * 4 + place / 8 % 2 * 2 + token % 2;
  return static_cast<std::uint16_t>((place / 16 * warp_lanes + lane) * 8 + i);
}
KVQ_HD constexpr int key_element_at(head_channels const& channels, int head_dim, int slab, int place) {
  return key_element(channels, head_dim, slab, place / 256, place / 8 % warp_lanes, place % 8);
}
KVQ_HD constexpr int value_element_at(head_channels const& channels, int head_dim, int slab, int place) {
  return value_element(channels, head_dim, slab, place / 256, place / 8 % warp_lanes, place % 8);
}

/// Where a lane's word lies in its slab, in bytes: words go in chunks of four, what is left over by itself.
KVQ_HD constexpr int word_offset(int word, int lane, int words) {
  return word < words / 4 * 4 ? word / 4 * 512 + lane * 16 + word % 4 * 4 : word * 128 + lane * 4;
}

/// A lane's `count` nibble words as its packed ones, and back.
template <int Bits>
KVQ_HD constexpr void pack_lane(std::uint32_t const* nibbles, int count, std::uint32_t* packed) {
  if constexpr (Bits == 4) {
    for (int i = 0; i < count; ++i) packed[i] = nibbles[i];
  } else if constexpr (Bits == 2) {
    for (int i = 0; i < count / 2; ++i) packed[i] = nibbles[2 * i] | nibbles[2 * i + 1] << 2;
  } else {
    int const fours = count / 4;
    for (int i = 0; i < fours; ++i) {
      std::uint32_t const last = nibbles[4 * i + 3];
      packed[3 * i] = nibbles[4 * i] | (last & 0x11111111u) << 3;
      packed[3 * i + 1] = nibbles[4 * i + 1] | (last & 0x22222222u) << 2;
      packed[3 * i + 2] = nibbles[4 * i + 2] | (last & 0x44444444u) << 1;
    }
    for (int i = 4 * fours; i < count; ++i) packed[i - fours] = nibbles[i];
  }
}
template <int Bits>
KVQ_HD constexpr void unpack_lane(std::uint32_t const* packed, int count, std::uint32_t* nibbles) {
  if constexpr (Bits == 4) {
    for (int i = 0; i < count; ++i) nibbles[i] = packed[i];
  } else if constexpr (Bits == 2) {
    for (int i = 0; i < count / 2; ++i) {
      nibbles[2 * i] = packed[i] & 0x33333333u;
      nibbles[2 * i + 1] = packed[i] >> 2 & 0x33333333u;
    }
  } else {
    int const fours = count / 4;
    for (int i = 0; i < fours; ++i) {
      std::uint32_t const a = packed[3 * i], b = packed[3 * i + 1], c = packed[3 * i + 2];
      nibbles[4 * i] = a & 0x77777777u;
      nibbles[4 * i + 1] = b & 0x77777777u;
      nibbles[4 * i + 2] = c & 0x77777777u;
      nibbles[4 * i + 3] = (a >> 3 & 0x11111111u) | (b >> 2 & 0x22222222u) | (c >> 1 & 0x44444444u);
    }
    for (int i = 4 * fours; i < count; ++i) nibbles[i] = packed[i - fours];
  }
}

/// One lane's part of one slab.
template <int Bits>
struct lane_codes {
  /// Codes of a word, before packing, and words: at most, for 256 channels.
  static constexpr int codes_per_word = Bits == 16 ? 2 : 8, bits_per_code = 32 / codes_per_word;
  static constexpr int most_words = 2 * 256 / 16 * 8 / codes_per_word;

  head_channels channels;
  int head_dim, slab, lane;

  KVQ_HD constexpr int unpacked_words() const { return head_dim / 8 * 8 / codes_per_word; }
  KVQ_HD constexpr int words() const { return slab_words(Bits, head_dim); }

  /// Calls `f(word, shift, is_key, element)` for each code of an unpacked word: keys' fragments, then values'.
  template <class F>
  KVQ_HD constexpr void for_each(F&& f) const {
    int const fragments = head_dim / 16;
    for (int fragment = 0; fragment < 2 * fragments; ++fragment)
      for (int i = 0; i < 8; ++i) {
        bool const is_key = fragment < fragments;
        int const element = is_key ? key_element(channels, head_dim, slab, fragment, lane, i)
                                   : value_element(channels, head_dim, slab, fragment - fragments, lane, i);
        f((fragment * 8 + i) / codes_per_word, i % codes_per_word * bits_per_code, is_key, element);
      }
  }

  /// `code(is_key, element)`; `put(offset in the slab, word)`.
  template <class Code, class Put>
  KVQ_HD constexpr void write(Code&& code, Put&& put) const {
    std::uint32_t unpacked[most_words] = {}, packed[most_words] = {};
    for_each([&](int word, int shift, bool is_key, int element) {
      unpacked[word] |= static_cast<std::uint32_t>(code(is_key, element)) << shift;
    });
    if constexpr (Bits != 16) pack_lane<Bits>(unpacked, unpacked_words(), packed);
    for (int i = 0; i < words(); ++i) put(word_offset(i, lane, words()), Bits == 16 ? unpacked[i] : packed[i]);
  }
  /// `get(offset in the slab)` is a word; `set(is_key, element, code)`.
  template <class Get, class Set>
  KVQ_HD constexpr void read(Get&& get, Set&& set) const {
    std::uint32_t packed[most_words] = {}, unpacked[most_words] = {};
    for (int i = 0; i < words(); ++i) (Bits == 16 ? unpacked : packed)[i] = get(word_offset(i, lane, words()));
    if constexpr (Bits != 16) unpack_lane<Bits>(packed, unpacked_words(), unpacked);
    for_each([&](int word, int shift, bool is_key, int element) {
      set(is_key, element, unpacked[word] >> shift & ((std::uint64_t{1} << Bits) - 1));
    });
  }
};

/// The same where channels have widths of their own: `put` and `get` are of cells, `put(offset, cell)`.
template <>
struct lane_codes<by_width> {
  head_channels channels;
  int head_dim, slab, lane;

  template <class Code, class Put>
  KVQ_HD constexpr void write(Code&& code, Put&& put) const {
    for_each_quartet([&](quartet it, bool is_key, int first_chunk) {
      std::uint16_t cells[quartet_chunks] = {};
      for_each_code(is_key, first_chunk, [&](int chunk, int i, int element) {
        auto const bits = static_cast<std::uint32_t>(code(is_key, element));
        for (int plane = 0; plane < width_in(it.kind, chunk); ++plane) {
          int const at = plane_in(it.kind, chunk, plane);
          cells[at / 4] = static_cast<std::uint16_t>(cells[at / 4] | (bits >> plane & 1) << (4 * i + at % 4));
        }
      });
      for (int cell = 0; cell < cells_of(it.kind); ++cell) put(offset(it, cell), cells[cell]);
    });
  }
  template <class Get, class Set>
  KVQ_HD constexpr void read(Get&& get, Set&& set) const {
    for_each_quartet([&](quartet it, bool is_key, int first_chunk) {
      std::uint16_t cells[quartet_chunks] = {};
      for (int cell = 0; cell < cells_of(it.kind); ++cell) cells[cell] = get(offset(it, cell));
      for_each_code(is_key, first_chunk, [&](int chunk, int i, int element) {
        std::uint64_t code = 0;
        for (int plane = 0; plane < width_in(it.kind, chunk); ++plane) {
          int const at = plane_in(it.kind, chunk, plane);
          code |= static_cast<std::uint64_t>(cells[at / 4] >> (4 * i + at % 4) & 1) << plane;
        }
        set(is_key, element, code);
      });
    });
  }

 private:
  KVQ_HD constexpr int offset(quartet it, int cell) const {
    return it.start + cell_offset(cells_of(it.kind), cell, lane);
  }
  /// `f(quartet, is_key, its first chunk)`.
  template <class F>
  KVQ_HD constexpr void for_each_quartet(F&& f) const {
    for (int side = 0; side < 2; ++side)
      for (int chunk = 0; chunk < head_dim / chunk_of_channels; chunk += quartet_chunks)
        f(channels.widths->quartets[side][chunk / quartet_chunks], side == 0, chunk);
  }
  /// `f(chunk of the quartet, code of the chunk, element)`.
  template <class F>
  KVQ_HD constexpr void for_each_code(bool is_key, int first_chunk, F&& f) const {
    for (int chunk = 0; chunk < quartet_chunks && first_chunk + chunk < head_dim / chunk_of_channels; ++chunk)
      for (int i = 0; i < chunk_codes; ++i) {
        int const fragment = (first_chunk + chunk) / 2, half = chunk % 2;
        f(chunk, i,
          is_key ? key_element(channels, head_dim, slab, fragment, lane, 2 * i + half)
                 : value_element(channels, head_dim, slab, fragment, lane, i / 2 * 4 + half * 2 + i % 2));
      }
  }
};

}  // namespace kvquant::cuda
