#pragma once
/// \file
/// Texts that tokenizers find hard.

#include <cstddef>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace kvquant::test {

/// The UTF-8 of any code point that is not a surrogate.
inline std::string utf8(char32_t c) {
  auto const trail = [&](int shift) { return static_cast<char>(0x80 | ((c >> shift) & 0x3F)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | (c >> 6)), trail(0)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | (c >> 12)), trail(6), trail(0)};
  return {static_cast<char>(0xF0 | (c >> 18)), trail(12), trail(6), trail(0)};
}

/// Half from a small set in which rules meet each other, half from all of Unicode.
inline std::string random_character(std::mt19937& random) {
  static std::vector<std::string> const telling{
      " ",         " ",      " ",        "\n",     "\r",     "\t",     "'",
      "s",         "'s",     "'RE",      "a",      "b",      "ab",     "1",
      "23",        "é",      "e\u0301",  "\u0663", "Ⅷ",      "½",      "你",
      "好",        "ſ",      "▁",        "\u00A0", "\u3000", "\u180E", "\u0085",
      "\u2028",    "\u200D", "👩\u200D💻", "🇫🇷",     "!",      "_",      std::string(1, '\0'),
      "\U0010FFFF"};
  if (random() % 2 == 0) return telling[random() % telling.size()];
  auto c = static_cast<char32_t>(random() % 4 == 0 ? random() % 0x110000 : random() % 0x3000);
  if (c >= 0xD800 && c < 0xE000) c -= 0x800;
  return utf8(c);
}

inline std::string random_utf8(std::mt19937& random, std::size_t characters) {
  std::string out;
  for (std::size_t i = 0; i < characters; ++i) out += random_character(random);
  return out;
}

/// UTF-8 with bytes overwritten, put in and cut off.
inline std::string random_bytes_in_utf8(std::mt19937& random, std::size_t characters) {
  std::string out = random_utf8(random, characters);
  for (std::size_t i = 0; i < characters / 4 + 1 && !out.empty(); ++i)
    out[random() % out.size()] = static_cast<char>(random() & 0xFF);
  return out.substr(0, out.size() - random() % (out.size() + 1) / 8);
}

}  // namespace kvquant::test
