#pragma once
/// \file
/// Where the characters of a byte string are.

#include <cstddef>
#include <string_view>

namespace kvquant::runtime {

/// Bytes of the well-formed UTF-8 sequence at the start of `text` (The Unicode Standard, table 3-7); 0 if there is
/// none.
constexpr std::size_t utf8_length(std::string_view text) noexcept {
  auto const byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  auto const within = [&](std::size_t i, unsigned low, unsigned high) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  if (text.empty()) return 0;
  unsigned const lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return within(1, 0x80, 0xBF) ? 2 : 0;
  if (lead < 0xF0) {
    // No overlong forms, no surrogates.
    unsigned const low = lead == 0xE0 ? 0xA0 : 0x80;
    unsigned const high = lead == 0xED ? 0x9F : 0xBF;
    return within(1, low, high) && within(2, 0x80, 0xBF) ? 3 : 0;
  }
  if (lead > 0xF4) return 0;
  // No overlong forms, nothing above U+10FFFF.
  unsigned const low = lead == 0xF0 ? 0x90 : 0x80;
  unsigned const high = lead == 0xF4 ? 0x8F : 0xBF;
  return within(1, low, high) && within(2, 0x80, 0xBF) && within(3, 0x80, 0xBF) ? 4 : 0;
}

/// The longest well-formed start of `text`.
constexpr std::string_view valid_utf8_prefix(std::string_view text) noexcept {
  std::size_t end = 0;
  while (std::size_t const length = utf8_length(text.substr(end))) end += length;
  return text.substr(0, end);
}

}  // namespace kvquant::runtime
