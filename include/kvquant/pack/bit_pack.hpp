#pragma once
/// \file
/// Codes of `Bits` bits without gaps: code i takes the bits [i · Bits, (i + 1) · Bits) of a stream whose bit b is bit
/// b % 8 (0 the least significant) of byte b / 8. Eight codes fill `Bits` bytes; the bits after the last code are zero.
/// Unpacked, codes of up to 8 bits are bytes. Those of 16 bits are copied as the machine, little-endian, has them.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "kvquant/core/error.hpp"

namespace kvquant {

/// Bits of codes that are packed without gaps.
template <int Bits>
concept CodeWidth = Bits >= 1 && Bits <= 8;
/// Bits of codes that are numbers of 16 bits as they are.
template <int Bits>
concept WideCodeWidth = Bits == 16;

/// ceil(codes · Bits / 8), which fits for every number of codes.
template <int Bits>
  requires CodeWidth<Bits>
constexpr std::size_t packed_bytes(std::size_t codes) noexcept { return codes / 8 * Bits + (codes % 8 * Bits + 7) / 8; }

namespace detail {

/// The lowest `width` of every `period` bits.
constexpr std::uint64_t repeated_ones(int width, int period) noexcept {
  std::uint64_t const ones = ~std::uint64_t{0} >> (64 - width);
  std::uint64_t mask = 0;
  for (int shift = 0; shift < 64; shift += period) mask |= ones << shift;
  return mask;
}

/// Eight bytes below 2^Bits to their 8 · Bits bits: neighbours move together, by pairs, fours and all eight.
template <int Bits>
constexpr std::uint64_t squeeze(std::uint64_t x) noexcept {
  for (int lane = 8, width = Bits; lane < 64; lane *= 2, width *= 2) {
    std::uint64_t const even = repeated_ones(lane, 2 * lane);
    x = (x & even) | ((x & ~even) >> (lane - width));
  }
  return x;
}

/// The inverse of `squeeze`.
template <int Bits>
constexpr std::uint64_t spread(std::uint64_t x) noexcept {
  for (int lane = 32, width = 4 * Bits; lane >= 8; lane /= 2, width /= 2) {
    std::uint64_t const even = repeated_ones(width, 2 * lane);
    x = (x & even) | ((x & (even << width)) << (lane - width));
  }
  return x;
}

template <class Byte>
constexpr std::uint64_t load_little_endian(Byte const* bytes, std::size_t count) noexcept {
  std::uint64_t word = 0;
  for (std::size_t i = 0; i < count; ++i) word |= static_cast<std::uint64_t>(bytes[i]) << (8 * i);
  return word;
}

template <class Byte>
constexpr void store_little_endian(std::uint64_t word, Byte* bytes, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<Byte>((word >> (8 * i)) & 0xff);
}

inline void require_columns(std::size_t codes, std::span<std::uint8_t const> widths, std::size_t bytes) {
  std::size_t row_bits = 0;
  for (std::uint8_t const width : widths) {
    require(width >= 1 && width <= 8, errc::bad_value, "pack: a column of ", int{width}, " bits, expected 1 to 8");
    row_bits += width;
  }
  require(!widths.empty() && codes % widths.size() == 0, errc::bad_shape, "pack: ", codes, " codes in rows of ",
          widths.size());
  std::size_t const rows = codes / widths.size(), expected = rows / 8 * row_bits + (rows % 8 * row_bits + 7) / 8;
  require(bytes == expected, errc::bad_shape, "pack: ", bytes, " bytes for ", rows, " rows of ", row_bits,
          " bits, expected ", expected);
}

}  // namespace detail

/// `packed`: exactly `packed_bytes<Bits>(codes.size())`. Throws `bad_shape`, and `bad_value` for a code of more than
/// `Bits` bits; nothing is written then.
template <int Bits>
  requires CodeWidth<Bits>
constexpr void pack(std::span<std::uint8_t const> codes, std::span<std::byte> packed) {
  require(packed.size() == packed_bytes<Bits>(codes.size()), errc::bad_shape, "pack: ", packed.size(), " bytes for ",
          codes.size(), " codes of ", Bits, " bits, expected ", packed_bytes<Bits>(codes.size()));
  unsigned all = 0;
  for (std::uint8_t const code : codes) all |= code;
  require(all >> Bits == 0, errc::bad_value, "pack: a code has more than ", Bits, " bits");
  std::size_t const groups = codes.size() / 8, rest = codes.size() % 8;
  for (std::size_t group = 0; group < groups; ++group) {
    std::uint64_t const word = detail::load_little_endian(codes.data() + 8 * group, 8);
    detail::store_little_endian(detail::squeeze<Bits>(word), packed.data() + Bits * group, Bits);
  }
  std::uint64_t const last = detail::load_little_endian(codes.data() + 8 * groups, rest);
  detail::store_little_endian(detail::squeeze<Bits>(last), packed.data() + Bits * groups, packed_bytes<Bits>(rest));
}

/// The inverse of `pack`. `packed`: exactly `packed_bytes<Bits>(codes.size())`, else `bad_shape` is thrown.
template <int Bits>
  requires CodeWidth<Bits>
constexpr void unpack(std::span<std::byte const> packed, std::span<std::uint8_t> codes) {
  require(packed.size() == packed_bytes<Bits>(codes.size()), errc::bad_shape, "unpack: ", packed.size(), " bytes for ",
          codes.size(), " codes of ", Bits, " bits, expected ", packed_bytes<Bits>(codes.size()));
  std::size_t const groups = codes.size() / 8, rest = codes.size() % 8;
  for (std::size_t group = 0; group < groups; ++group) {
    std::uint64_t const word = detail::load_little_endian(packed.data() + Bits * group, Bits);
    detail::store_little_endian(detail::spread<Bits>(word), codes.data() + 8 * group, 8);
  }
  std::uint64_t const last = detail::load_little_endian(packed.data() + Bits * groups, packed_bytes<Bits>(rest));
  detail::store_little_endian(detail::spread<Bits>(last), codes.data() + 8 * groups, rest);
}

/// Throws `bad_shape` unless there are two bytes for each code.
template <int Bits>
  requires WideCodeWidth<Bits>
inline void pack(std::span<std::uint16_t const> codes, std::span<std::byte> packed) {
  require(packed.size() == codes.size_bytes(), errc::bad_shape, "pack: ", packed.size(), " bytes for ", codes.size(),
          " codes of 16 bits, expected ", codes.size_bytes());
  if (!codes.empty()) std::memcpy(packed.data(), codes.data(), packed.size());
}

/// The inverse of `pack`.
template <int Bits>
  requires WideCodeWidth<Bits>
inline void unpack(std::span<std::byte const> packed, std::span<std::uint16_t> codes) {
  require(packed.size() == codes.size_bytes(), errc::bad_shape, "unpack: ", packed.size(), " bytes for ", codes.size(),
          " codes of 16 bits, expected ", codes.size_bytes());
  if (!codes.empty()) std::memcpy(codes.data(), packed.data(), packed.size());
}

/// Rows of codes whose widths differ by column, each 1 to 8 bits, as one stream: a row's codes follow each other, and
/// row follows row. Bytes of a whole number of rows; throws `bad_shape` for others, and `bad_value` for a code that has
/// more bits than its column.
inline void pack_columns(std::span<std::uint8_t const> codes, std::span<std::uint8_t const> widths,
                         std::span<std::byte> packed) {
  detail::require_columns(codes.size(), widths, packed.size());
  std::uint64_t word = 0;
  int filled = 0;
  std::size_t at = 0;
  for (std::size_t i = 0, column = 0; i < codes.size(); ++i, column = column + 1 == widths.size() ? 0 : column + 1) {
    require(codes[i] >> widths[column] == 0, errc::bad_value, "pack: code ", i, " is ", int{codes[i]},
            ", its column has ", int{widths[column]}, " bits");
    word |= std::uint64_t{codes[i]} << filled;
    for (filled += widths[column]; filled >= 8; filled -= 8, word >>= 8)
      packed[at++] = static_cast<std::byte>(word & 0xff);
  }
  if (filled > 0) packed[at] = static_cast<std::byte>(word);
}

/// The inverse of `pack_columns`.
inline void unpack_columns(std::span<std::byte const> packed, std::span<std::uint8_t const> widths,
                           std::span<std::uint8_t> codes) {
  detail::require_columns(codes.size(), widths, packed.size());
  std::uint64_t word = 0;
  int filled = 0;
  std::size_t at = 0;
  for (std::size_t i = 0, column = 0; i < codes.size(); ++i, column = column + 1 == widths.size() ? 0 : column + 1) {
    for (; filled < widths[column]; filled += 8) word |= static_cast<std::uint64_t>(packed[at++]) << filled;
    codes[i] = static_cast<std::uint8_t>(word & ((1u << widths[column]) - 1));
    word >>= widths[column];
    filled -= widths[column];
  }
}

/// Code `i` of what `pack` wrote from bytes. Throws `bad_shape` where `packed` has no such bits.
template <int Bits>
  requires CodeWidth<Bits>
constexpr std::uint8_t code_at(std::span<std::byte const> packed, std::size_t i) {
  std::size_t const bit = i % 8 * Bits, first = i / 8 * Bits + bit / 8, last = i / 8 * Bits + (bit + Bits - 1) / 8;
  // Not `require`: g++ 12 would not see that the reads below are within bounds, and warn.
  if (last >= packed.size()) [[unlikely]]
    throw error{errc::bad_shape, text("code_at: code ", i, " of ", Bits, " bits is not in ", packed.size(), " bytes")};
  auto const word = static_cast<unsigned>(packed[first]) | static_cast<unsigned>(packed[last]) << 8;
  return static_cast<std::uint8_t>((word >> (bit % 8)) & ((1u << Bits) - 1));
}

}  // namespace kvquant
