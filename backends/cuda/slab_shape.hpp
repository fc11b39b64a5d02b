#pragma once
/// \file
/// The sizes of a page in fragment order, for the host and the device alike.
///
/// A page is four slabs of 16 tokens, one for each warp that reads it. A slab's codes are those that tensor-core
/// instructions want, lane by lane: eight codes (a fragment of 16 x 16) are a *nibble word* of 32 bits, `head_dim / 16`
/// of them for the keys, then as many for the values.

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvquant/core/config.hpp"

namespace kvquant::cuda {

/// In place of a number of bits: channels have widths of their own (`quartets.hpp`).
inline constexpr int by_width = 0;

/// What kernels read: bits of a code, alike on both sides, and channels of a head.
inline constexpr std::array head_dims{64, 80, 96, 128, 256};
inline constexpr std::array code_bits{by_width, 2, 3, 4, 16};

inline constexpr int slab_tokens = 16, slabs_per_page = 4, warp_lanes = 32;
/// Columns of the second operand of a tensor-core instruction: queries that are served together.
inline constexpr int query_columns = 8;

/// 32-bit words that one lane has of a slab. Of 4 bits, nibble words as they are; of 3, four nibble words in three, the
/// fourth in the others' spare bits, and what is left over as it is; of 2, two in one; of 16, pairs of numbers.
KVQ_HD constexpr int slab_words(int bits, int head_dim) {
  int const nibble_words = head_dim / 8;
  if (bits == 16) return head_dim / 2;
  if (bits == 3) return nibble_words / 4 * 3 + nibble_words % 4;
  return bits == 2 ? nibble_words / 2 : nibble_words;
}

/// Bytes of a slab's codes of one width.
KVQ_HD constexpr std::size_t slab_code_bytes(int bits, int head_dim) {
  return static_cast<std::size_t>(slab_words(bits, head_dim)) * warp_lanes * 4;
}

/// Where a page's parts start, in bytes. A slab: words in chunks of four, [chunk, lane], then single ones, [word,
/// lane], or quartets; the 16 ranges of its values, if tokens have any; of pages with slots, which are the slab's
/// (`slot_runs`). Behind the slabs: key slots and value slots, each by rising slab.
struct fragment_offsets {
  std::size_t slab_ranges = 0, slab_slots = 0;  ///< from the slab's start
  std::size_t slab_bytes = 0;
  std::size_t k_slots = 0, v_slots = 0, end = 0;

  fragment_offsets() = default;
  /// `code_bytes`: of a slab.
  KVQ_HD constexpr fragment_offsets(std::size_t code_bytes, bool has_ranges, std::size_t k_slot_count,
                                    std::size_t v_slot_count)
      : slab_ranges(code_bytes),
        slab_slots(slab_ranges + (has_ranges ? slab_tokens * 4 : 0)),
        slab_bytes(slab_slots + (k_slot_count + v_slot_count == 0 ? 0 : 16)),
        k_slots(slab_bytes * slabs_per_page),
        v_slots(k_slots + k_slot_count * 4),
        end(v_slots + v_slot_count * 4) {}
};

/// One side's slots of one slab.
struct slot_run {
  std::uint16_t offset;  ///< in bytes, from the side's first in the page
  std::uint16_t count;
};
/// Of one slab. 16 bytes, as slabs are copied.
struct alignas(16) slot_runs {
  slot_run k, v;
  std::uint32_t unused[2] = {};
};

/// One sparse element.
struct fragment_slot {
  std::uint16_t place;     ///< among its slab's elements of one side, [fragment, lane, 8] (see `fragment_order.hpp`)
  std::uint16_t residual;  ///< binary16
};
static_assert(sizeof(slot_runs) == 16 && sizeof(fragment_slot) == 4);

/// The channels of a key as members of pairs: the pair's number, and 128 more for its second. For at most 256 channels.
inline constexpr int second_member = 128;

}  // namespace kvquant::cuda
