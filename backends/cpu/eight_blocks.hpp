#pragma once
/// \file
/// Eight blocks of 64 codes in exactly their bits, so that a kernel unpacks them with a byte permute each.
///
/// 4 bits: byte k of line i holds code k of blocks 2i (low) and 2i + 1. 2 bits: of blocks 4i to 4i + 3, low to high.
/// 3 bits: byte k of line i < 3 holds code k of blocks 2i and 2i + 1 and two bits more, which are the low two of block
/// 6 in line 0, the low two of block 7 in line 1, and the third bits of both in line 2. 1 bit: byte k holds code k of
/// all eight, low to high.

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace kvquant::cpu {

inline constexpr std::size_t block_bytes = 64, block_codes = 8 * block_bytes;
template <int Bits>
inline constexpr std::size_t packed_block_bytes = block_codes / 8 * Bits;

template <int Bits>
concept QuadWidth = Bits >= 1 && Bits <= 4;

/// `f(std::integral_constant<int, bits>)` for a width that is known at run time alone, 1 to 4.
template <class F>
decltype(auto) with_width(int bits, F&& f) {
  switch (bits) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    default: return f(std::integral_constant<int, 4>{});
  }
}

template <int Bits>
  requires QuadWidth<Bits>
void pack_blocks(std::array<std::uint8_t, block_codes> const& codes, std::uint8_t* packed) {
  auto const code = [&](std::size_t block, std::size_t k) { return static_cast<unsigned>(codes[block * 64 + k]); };
  auto const put = [&](std::size_t line, std::size_t k, unsigned byte) {
    packed[line * 64 + k] = static_cast<std::uint8_t>(byte);
  };
  for (std::size_t k = 0; k < block_bytes; ++k) {
    if constexpr (Bits == 1) {
      unsigned byte = 0;
      for (std::size_t block = 0; block < 8; ++block) byte |= code(block, k) << block;
      put(0, k, byte);
    }
    if constexpr (Bits == 4)
      for (std::size_t line = 0; line < 4; ++line) put(line, k, code(2 * line, k) | code(2 * line + 1, k) << 4);
    if constexpr (Bits == 2)
      for (std::size_t line = 0; line < 2; ++line)
        put(line, k,
            code(4 * line, k) | code(4 * line + 1, k) << 2 | code(4 * line + 2, k) << 4 | code(4 * line + 3, k) << 6);
    if constexpr (Bits == 3) {
      unsigned const six = code(6, k), seven = code(7, k);
      put(0, k, code(0, k) | code(1, k) << 3 | (six & 3) << 6);
      put(1, k, code(2, k) | code(3, k) << 3 | (seven & 3) << 6);
      put(2, k, code(4, k) | code(5, k) << 3 | (six >> 2) << 6 | (seven >> 2) << 7);
    }
  }
}

template <int Bits>
  requires QuadWidth<Bits>
void unpack_blocks(std::uint8_t const* packed, std::array<std::uint8_t, block_codes>& codes) {
  auto const line = [&](std::size_t i, std::size_t k) { return static_cast<unsigned>(packed[i * 64 + k]); };
  auto const put = [&](std::size_t block, std::size_t k, unsigned code) {
    codes[block * 64 + k] = static_cast<std::uint8_t>(code);
  };
  constexpr unsigned mask = (1u << Bits) - 1;
  for (std::size_t k = 0; k < block_bytes; ++k) {
    if constexpr (Bits == 1)
      for (std::size_t block = 0; block < 8; ++block) put(block, k, line(0, k) >> block & mask);
    if constexpr (Bits == 4)
      for (std::size_t block = 0; block < 8; ++block) put(block, k, line(block / 2, k) >> (block % 2 * 4) & mask);
    if constexpr (Bits == 2)
      for (std::size_t block = 0; block < 8; ++block) put(block, k, line(block / 4, k) >> (block % 4 * 2) & mask);
    if constexpr (Bits == 3) {
      for (std::size_t block = 0; block < 6; ++block) put(block, k, line(block / 2, k) >> (block % 2 * 3) & mask);
      put(6, k, line(0, k) >> 6 | (line(2, k) >> 6 & 1) << 2);
      put(7, k, line(1, k) >> 6 | (line(2, k) >> 7) << 2);
    }
  }
}

}  // namespace kvquant::cpu
