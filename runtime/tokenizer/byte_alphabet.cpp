#include "runtime/tokenizer/byte_alphabet.hpp"

#include <array>
#include <cstdint>

namespace kvquant::runtime {
namespace {

constexpr bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

constexpr int alphabet_end = 0x144;  // U+0100 + 68 bytes

constexpr auto code_points = [] {
  std::array<std::uint16_t, 256> table{};
  std::uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte)
    table[static_cast<std::size_t>(byte)] = stands_for_itself(byte) ? static_cast<std::uint16_t>(byte) : next++;
  return table;
}();

/// byte of a code point, or -1
constexpr auto bytes_of = [] {
  std::array<std::int16_t, alphabet_end> table{};
  table.fill(-1);
  for (std::size_t byte = 0; byte < 256; ++byte) table[code_points[byte]] = static_cast<std::int16_t>(byte);
  return table;
}();

}  // namespace

std::string spell_bytes(std::string_view bytes) {
  std::string spelling;
  for (char const byte : bytes) {
    unsigned const code_point = code_points[static_cast<unsigned char>(byte)];
    if (code_point < 0x80) {
      spelling += static_cast<char>(code_point);
    } else {
      spelling += static_cast<char>(0xC0 | (code_point >> 6));
      spelling += static_cast<char>(0x80 | (code_point & 0x3F));
    }
  }
  return spelling;
}

std::optional<std::string> unspell_bytes(std::string_view spelling) {
  std::string bytes;
  for (std::size_t i = 0; i < spelling.size(); ++i) {
    unsigned code_point = static_cast<unsigned char>(spelling[i]);
    if (code_point >= 0x80) {
      // The alphabet ends below U+0800: two bytes are enough.
      if ((code_point & 0xE0) != 0xC0 || i + 1 == spelling.size()) return std::nullopt;
      unsigned const trail = static_cast<unsigned char>(spelling[++i]);
      if ((trail & 0xC0) != 0x80) return std::nullopt;
      code_point = (code_point & 0x1F) << 6 | (trail & 0x3F);
      if (code_point < 0x80) return std::nullopt;
    }
    if (code_point >= alphabet_end || bytes_of[code_point] < 0) return std::nullopt;
    bytes += static_cast<char>(bytes_of[code_point]);
  }
  return bytes;
}

}  // namespace kvquant::runtime
