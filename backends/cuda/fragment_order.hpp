#pragma once
/// \file
/// Which elements of a page are where in a slab, for the host and the device alike.

#include <cstddef>
#include <cstdint>

#include "backends/cuda/slab_shape.hpp"
#include "kvquant/core/config.hpp"

namespace kvquant::cuda {

/// How the channels of a key pair up (see `pair_of`), and what they are called as members of pairs: the pair's number,
/// and `second_member` more for its second. For at most 256 channels.
struct key_pairs {
  int turned = 0;           ///< pairs that RoPE turns
  bool half_split = false;  ///< how those are paired

  KVQ_HD constexpr int channel_of(int member) const {
    int const pair = member % second_member, second = member / second_member;
    return half_split && pair < turned ? pair + second * turned : 2 * pair + second;
  }
  KVQ_HD constexpr int member_of(int channel) const {
    if (half_split && channel < 2 * turned) return channel % turned + channel / turned * second_member;
    return channel / 2 + channel % 2 * second_member;
  }
};

/// Which element of a page, token · head_dim + channel, is the `i`-th of the eight that a lane has of a fragment: of
/// keys the two of a pair are in one lane.
KVQ_HD constexpr int key_element(key_pairs pairs, int head_dim, int slab, int fragment, int lane, int i) {
  int const token = slab * slab_tokens + lane / 4 + i / 2 % 2 * 8, pair = fragment * 8 + lane % 4 * 2 + i % 2;
  return token * head_dim + pairs.channel_of(pair + (i < 4 ? 0 : second_member));
}
/// Values are turned about the diagonal.
KVQ_HD constexpr int value_element(int head_dim, int slab, int fragment, int lane, int i) {
  int const token = slab * slab_tokens + lane % 4 * 2 + i / 4 * 8 + i % 2;
  return token * head_dim + fragment * 16 + lane / 4 + i / 2 % 2 * 8;
}

/// The place of a page's element among those of its slab, [fragment, lane, 8], and what is there.
KVQ_HD constexpr std::uint16_t key_place(key_pairs pairs, int head_dim, int element) {
  int const token = element / head_dim % slab_tokens, member = pairs.member_of(element % head_dim);
  int const pair = member % second_member, second = member / second_member;
  int const lane = token % 8 * 4 + pair % 8 / 2, i = second * 4 + token / 8 * 2 + pair % 2;
  return static_cast<std::uint16_t>((pair / 8 * warp_lanes + lane) * 8 + i);
}
KVQ_HD constexpr std::uint16_t value_place(int head_dim, int element) {
  int const token = element / head_dim % slab_tokens, channel = element % head_dim;
  int const lane = channel % 8 * 4 + token % 8 / 2, i = token / 8 * 4 + channel / 8 % 2 * 2 + token % 2;
  return static_cast<std::uint16_t>((channel / 16 * warp_lanes + lane) * 8 + i);
}
KVQ_HD constexpr int key_element_at(key_pairs pairs, int head_dim, int slab, int place) {
  return key_element(pairs, head_dim, slab, place / 256, place / 8 % warp_lanes, place % 8);
}
KVQ_HD constexpr int value_element_at(int head_dim, int slab, int place) {
  return value_element(head_dim, slab, place / 256, place / 8 % warp_lanes, place % 8);
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

  key_pairs pairs;
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
        int const element = is_key ? key_element(pairs, head_dim, slab, fragment, lane, i)
                                   : value_element(head_dim, slab, fragment - fragments, lane, i);
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

}  // namespace kvquant::cuda
