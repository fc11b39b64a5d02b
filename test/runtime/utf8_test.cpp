/// \file
/// Where characters are, against a decoder that builds the code point and looks at nothing else.

#include "runtime/tokenizer/utf8.hpp"

#include <algorithm>
#include <bit>
#include <catch2/catch.hpp>
#include <cstddef>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "test/support/random_text.hpp"

using kvquant::runtime::utf8_length;
using kvquant::runtime::valid_utf8_prefix;

namespace {

/// A character is well-formed if its code point is one of Unicode's and is written in the fewest bytes.
std::size_t decoded_length(std::string_view text) {
  if (text.empty()) return 0;
  auto const lead = static_cast<unsigned char>(text[0]);
  auto const ones = static_cast<std::size_t>(std::countl_one(lead));
  if (ones == 0) return 1;
  if (ones == 1 || ones > 4 || text.size() < ones) return 0;
  char32_t code_point = lead & (0x7Fu >> ones);
  for (std::size_t i = 1; i < ones; ++i) {
    auto const trail = static_cast<unsigned char>(text[i]);
    if (std::countl_one(trail) != 1) return 0;
    code_point = code_point * 64 + (trail - 128u);
  }
  bool const surrogate = code_point / 0x800 == 0x1B;
  bool const fewest = std::size_t{code_point < 0x80      ? 1u
                                  : code_point < 0x800   ? 2u
                                  : code_point < 0x10000 ? 3u
                                                         : 4u} == ones;
  return code_point < 0x110000 && fewest && !surrogate ? ones : 0;
}

/// Both ends of every range in The Unicode Standard's table 3-7, and their neighbours.
std::string telling_bytes() {
  std::string bytes;
  for (int const edge : {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0,
                         0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF7, 0xF8, 0xFF})
    bytes += static_cast<char>(edge);
  return bytes;
}

}  // namespace

TEST_CASE("All sequences of one to three bytes are as long as their code point says", "[tokenizer]") {
  CHECK(utf8_length("") == 0);
  std::size_t wrong = 0;
  std::string text;
  for (std::size_t length = 1; length <= 3; ++length) {
    text.resize(length);
    for (std::size_t number = 0; number < std::size_t{1} << (8 * length); ++number) {
      for (std::size_t i = 0; i < length; ++i) text[i] = static_cast<char>(number >> (8 * i) & 0xFF);
      wrong += utf8_length(text) != decoded_length(text);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("Sequences of four and five bytes at the edges of all ranges are as long as their code point says",
          "[tokenizer]") {
  auto const edges = telling_bytes();
  std::size_t wrong = 0;
  for (int lead = 0; lead < 256; ++lead)
    for (int second = 0; second < 256; ++second)
      for (char const third : edges)
        for (char const fourth : edges) {
          std::string const text{static_cast<char>(lead), static_cast<char>(second), third, fourth};
          wrong += utf8_length(text) != decoded_length(text);
          wrong += utf8_length(text + third) != decoded_length(text);
        }
  CHECK(wrong == 0);
}

TEST_CASE("Every code point but the surrogates is one character, and none when it is cut short", "[tokenizer]") {
  std::size_t wrong = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    bool const surrogate = c >= 0xD800 && c < 0xE000;
    auto const text = kvquant::test::utf8(c);
    wrong += utf8_length(text) != (surrogate ? 0 : text.size());
    wrong += utf8_length(text + "\x80") != (surrogate ? 0 : text.size());
    for (std::size_t cut = 0; cut < text.size(); ++cut) wrong += utf8_length(text.substr(0, cut)) != 0;
  }
  CHECK(wrong == 0);
}

TEST_CASE("A character's length can be had at compile time", "[tokenizer]") {
  STATIC_REQUIRE(utf8_length("\xE2\x96\x81x") == 3);
  STATIC_REQUIRE(utf8_length("\xED\xA0\x80") == 0);
  STATIC_REQUIRE(valid_utf8_prefix("ab\xC3").size() == 2);
}

TEST_CASE("The valid prefix ends before the first byte that is no part of a character", "[tokenizer]") {
  CHECK(valid_utf8_prefix("").empty());
  CHECK(valid_utf8_prefix("aé你👩") == "aé你👩");
  CHECK(valid_utf8_prefix("aé\xFF"
                          "b") == "aé");
  CHECK(valid_utf8_prefix("a\xE4\xBD") == "a");
  CHECK(valid_utf8_prefix("\x80").empty());
  CHECK(valid_utf8_prefix(std::string_view("\0a", 2)).size() == 2);
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    auto const good = kvquant::test::random_utf8(random, random() % 20);
    REQUIRE(valid_utf8_prefix(good) == good);
    auto const text = kvquant::test::random_bytes_in_utf8(random, random() % 20);
    std::size_t end = 0;
    while (auto const length = decoded_length(std::string_view(text).substr(end))) end += length;
    REQUIRE(valid_utf8_prefix(text) == std::string_view(text).substr(0, end));
  }
}
