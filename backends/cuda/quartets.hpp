#pragma once
/// \file
/// Codes whose width changes from eight channels to the next, in words that tensor-core fragments are quickly made of.
///
/// A chunk is eight channels of a slab's 16 tokens: four codes of each lane, half a fragment. A *cell* is 16 bits of
/// each lane, 64 bytes in all: four codes with room for 4 bits each. Four chunks, two fragments, whose widths fill
/// whole cells are a *quartet*. Ten kinds do for all widths of 1 to 4 bits that add up to a multiple of 4.

#include <cstddef>
#include <cstdint>

#include "backends/cuda/slab_shape.hpp"
#include "kvquant/core/config.hpp"

namespace kvquant::cuda {

inline constexpr int chunk_of_channels = 8, quartet_chunks = 4, quartet_channels = quartet_chunks * chunk_of_channels;
inline constexpr int cell_bytes = 2 * warp_lanes, chunk_codes = 4;
inline constexpr int most_quartets = 256 / quartet_channels;

/// By the widths of its chunks.
enum quartet_kind : std::uint8_t {
  w4444,
  w4422,
  w4431,
  w4332,
  w3333,
  w4211,
  w2222,
  w3212,
  w3311,
  w1111,
  quartet_kinds
};

/// Bits of a chunk's codes; what is stored may be wider than the codes are.
KVQ_HD constexpr int width_in(int kind, int chunk) {
  constexpr std::uint16_t widths[] = {0x4444, 0x2244, 0x1344, 0x2334, 0x3333, 0x1124, 0x2222, 0x2123, 0x1133, 0x1111};
  return widths[kind] >> 4 * chunk & 15;
}
KVQ_HD constexpr int cells_of(int kind) {
  int bits = 0;
  for (int chunk = 0; chunk < quartet_chunks; ++chunk) bits += width_in(kind, chunk);
  return bits / 4;
}

/// Where bit `plane` of a chunk's codes is: cell · 4 + bit of each of the cell's four codes.
KVQ_HD constexpr int plane_in(int kind, int chunk, int plane) {
  constexpr std::uint64_t planes[] = {0xfedc'ba98'7654'3210, 0x00ba'0098'7654'3210, 0x000b'0a98'7654'3210,
                                      0x00b7'0a98'0654'3210, 0x0b73'0a98'0654'0210, 0x0007'0006'0054'3210,
                                      0x0076'0032'0054'0010, 0x0076'0003'0054'0210, 0x0007'0003'0654'0210,
                                      0x0003'0002'0001'0000};
  return static_cast<int>(planes[kind] >> (4 * (4 * chunk + plane)) & 15);
}

/// Where a lane's cell lies in a quartet, in bytes: two of them side by side, an odd one by itself.
KVQ_HD constexpr int cell_offset(int cells, int cell, int lane) {
  int const first = cell / 2 * 2;
  return first * cell_bytes + (first + 1 == cells ? lane * 2 : lane * 4 + cell % 2 * 2);
}

struct quartet {
  std::uint16_t kind;   ///< of `quartet_kind`
  std::uint16_t start;  ///< in bytes, from the slab's first cell
};

/// Cells that codes of `token_bits` a token need at most. Where a quartet has two chunks only, as of 80 channels, its
/// spare bits are lost.
KVQ_HD constexpr int cells_for(int head_dim, int token_bits) {
  int const widths = token_bits / chunk_of_channels;
  return head_dim % quartet_channels == 0 ? (widths + 3) / 4 : widths / 4 + 2;
}

/// One head's channels in the order in which their codes lie, and how. A key's places are its pairs'.
struct head_widths {
  std::uint8_t pair_at[128], place_of_pair[128];
  std::uint8_t channel_at[256], place_of_channel[256];
  quartet quartets[2][most_quartets];  ///< of keys, of values
};

}  // namespace kvquant::cuda
