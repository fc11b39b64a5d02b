#include "kvquant/pack/bit_pack.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <limits>
#include <random>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kvquant/core/error.hpp"

namespace {

using namespace kvquant;

template <int Bits>
using width = std::integral_constant<int, Bits>;
using all_widths = std::tuple<width<1>, width<2>, width<3>, width<4>, width<5>, width<6>, width<7>, width<8>>;

std::vector<std::uint8_t> random_codes(std::size_t count, int bits, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> codes(count);
  for (auto& code : codes) code = static_cast<std::uint8_t>(random() & ((1u << bits) - 1));
  return codes;
}

/// The definition, bit by bit.
std::vector<std::byte> packed_by_bits(std::vector<std::uint8_t> const& codes, int bits) {
  std::size_t const width = static_cast<std::size_t>(bits), total = codes.size() * width;
  std::vector<std::byte> packed((total + 7) / 8);
  for (std::size_t bit = 0; bit < total; ++bit)
    if (codes[bit / width] >> (bit % width) & 1) packed[bit / 8] |= std::byte{1} << (bit % 8);
  return packed;
}

template <std::size_t N>
std::vector<std::byte> bytes(std::array<int, N> const& values) {
  std::vector<std::byte> result;
  for (int const value : values) result.push_back(static_cast<std::byte>(value));
  return result;
}

template <int Bits>
std::vector<std::byte> packed(std::vector<std::uint8_t> const& codes) {
  std::vector<std::byte> result(packed_bytes<Bits>(codes.size()));
  pack<Bits>(codes, result);
  return result;
}

}  // namespace

TEST_CASE("codes of 16 bits are their bytes, the lower first, and come back", "[pack]") {
  std::vector<std::uint16_t> const codes = {0x1234, 0xffff, 0x00ab};
  std::vector<std::byte> packed(6);
  pack<16>(codes, packed);
  CHECK(packed == bytes(std::array{0x34, 0x12, 0xff, 0xff, 0xab, 0x00}));
  std::vector<std::uint16_t> back(3);
  unpack<16>(packed, back);
  CHECK(back == codes);
  back.pop_back();
  CHECK_THROWS_AS(pack<16>(back, packed), error);
  CHECK_THROWS_AS(unpack<16>(packed, back), error);
  CHECK_NOTHROW(pack<16>({}, {}));
  CHECK_NOTHROW(unpack<16>({}, {}));
}

TEMPLATE_LIST_TEST_CASE("packed codes follow the definition and come back, at every length", "[pack]", all_widths) {
  constexpr int bits = TestType::value;
  for (std::size_t count = 0; count <= 200; ++count) {
    auto const codes = random_codes(count, bits, static_cast<unsigned>(count));
    auto const stream = packed<bits>(codes);
    REQUIRE(stream == packed_by_bits(codes, bits));
    std::vector<std::uint8_t> back(count, 0xff);
    unpack<bits>(stream, back);
    REQUIRE(back == codes);
    for (std::size_t i = 0; i < count; ++i) REQUIRE(code_at<bits>(stream, i) == codes[i]);
  }
}

TEMPLATE_LIST_TEST_CASE("packing touches its bytes alone", "[pack]", all_widths) {
  constexpr int bits = TestType::value;
  for (std::size_t count : {0u, 1u, 7u, 8u, 9u, 61u}) {
    auto const codes = random_codes(count, bits, 3);
    std::size_t const size = packed_bytes<bits>(count);
    std::vector<std::byte> stream(size + 16, std::byte{0xa5});
    pack<bits>(codes, std::span(stream).subspan(8, size));
    std::vector<std::uint8_t> back(count + 16, 0x5a);
    unpack<bits>(std::span<std::byte const>(stream).subspan(8, size), std::span(back).subspan(8, count));
    for (std::size_t i = 0; i < 8; ++i) {
      REQUIRE(stream[i] == std::byte{0xa5});
      REQUIRE(stream[8 + size + i] == std::byte{0xa5});
      REQUIRE(back[i] == 0x5a);
      REQUIRE(back[8 + count + i] == 0x5a);
    }
  }
}

TEST_CASE("the layout of packed codes is fixed", "[pack]") {
  CHECK(packed<2>({0, 1, 2, 3, 3}) == bytes(std::array{0b11'10'01'00, 0b11}));
  CHECK(packed<3>({1, 2, 3, 4, 5, 6, 7, 0, 5}) == bytes(std::array{0b11'010'001, 0b0'101'100'0, 0b000'111'11, 0b101}));
  CHECK(packed<4>({0x1, 0x2, 0xf}) == bytes(std::array{0x21, 0x0f}));
  CHECK(packed<5>({0b10001, 0b00111}) == bytes(std::array{0b111'10001, 0b00}));
  CHECK(packed<8>({0xab, 0xcd}) == bytes(std::array{0xab, 0xcd}));
}

TEST_CASE("packed sizes are exact and cannot overflow", "[pack]") {
  STATIC_REQUIRE(packed_bytes<3>(0) == 0);
  STATIC_REQUIRE(packed_bytes<3>(1) == 1);
  STATIC_REQUIRE(packed_bytes<3>(64 * 128) == 64 * 128 * 3 / 8);
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
  STATIC_REQUIRE(packed_bytes<8>(most) == most);
  STATIC_REQUIRE(packed_bytes<1>(most) == most / 8 + 1);
}

TEST_CASE("columns of different widths follow each other without gaps", "[pack]") {
  std::vector<std::uint8_t> const widths = {1, 4, 2}, codes = {1, 0x9, 2, 0, 0xf, 1, 1, 0, 3};
  std::vector<std::byte> stream(3);  // 3 rows of 7 bits
  pack_columns(codes, widths, stream);
  // From the least bit on: 1 1001 10, 0 1111 01, 1 0000 11, each number with its least bit first.
  CHECK(stream == bytes(std::array{83, 95, 24}));
  std::vector<std::uint8_t> back(codes.size());
  unpack_columns(stream, widths, back);
  CHECK(back == codes);
}

TEST_CASE("columns of one width are packed as codes of that width are", "[pack]") {
  for (std::size_t const rows : {1u, 8u, 64u}) {
    auto const codes = random_codes(rows * 24, 3, 5);
    std::vector<std::uint8_t> const widths(24, 3);
    std::vector<std::byte> columns(packed_bytes<3>(codes.size())), plain(columns.size());
    pack_columns(codes, widths, columns);
    pack<3>(codes, plain);
    CHECK(columns == plain);
  }
}

TEST_CASE("columns of any widths come back", "[pack]") {
  std::mt19937 random(2);
  for (std::size_t const rows : {1u, 3u, 64u}) {
    std::vector<std::uint8_t> widths(40), codes;
    for (auto& width : widths) width = static_cast<std::uint8_t>(1 + random() % 8);
    for (std::size_t i = 0; i < rows * widths.size(); ++i)
      codes.push_back(static_cast<std::uint8_t>(random() % (1u << widths[i % widths.size()])));
    std::size_t const row_bits = std::accumulate(widths.begin(), widths.end(), std::size_t{0});
    std::vector<std::byte> stream((rows * row_bits + 7) / 8, std::byte{0xff});
    std::vector<std::uint8_t> back(codes.size());
    pack_columns(codes, widths, stream);
    unpack_columns(stream, widths, back);
    CHECK(back == codes);
  }
}

TEST_CASE("packing columns refuses what does not fit", "[pack]") {
  std::vector<std::uint8_t> codes = {1, 3}, widths = {1, 2};
  std::vector<std::byte> stream(1);
  CHECK_THROWS_WITH(pack_columns(codes, widths, std::span<std::byte>{}),
                    Catch::Contains("0 bytes for 1 rows of 3 bits"));
  CHECK_THROWS_WITH(unpack_columns(std::span<std::byte const>{}, widths, codes), Catch::Contains("expected 1"));
  codes[0] = 2;
  CHECK_THROWS_WITH(pack_columns(codes, widths, stream), Catch::Contains("code 0 is 2, its column has 1 bits"));
  widths[1] = 9;
  CHECK_THROWS_WITH(pack_columns(codes, widths, stream), Catch::Contains("a column of 9 bits"));
  CHECK_THROWS_WITH(pack_columns(codes, {}, stream), Catch::Contains("in rows of 0"));
  widths = {1, 2, 3};
  CHECK_THROWS_WITH(pack_columns(codes, widths, stream), Catch::Contains("2 codes in rows of 3"));
}

TEST_CASE("packing works at compile time", "[pack]") {
  constexpr auto round_trip = [] {
    std::array<std::uint8_t, 11> const codes{1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3};
    std::array<std::byte, packed_bytes<3>(11)> stream{};
    pack<3>(codes, stream);
    std::array<std::uint8_t, 11> back{};
    unpack<3>(stream, back);
    return back == codes && code_at<3>(stream, 10) == 3;
  };
  STATIC_REQUIRE(round_trip());
}

TEST_CASE("packing refuses what does not fit", "[pack]") {
  std::vector<std::uint8_t> codes(9, 7);
  std::vector<std::byte> stream(4);
  CHECK_THROWS_WITH(pack<3>(codes, std::span(stream).first(3)),
                    Catch::Contains("3 bytes for 9 codes of 3 bits, expected 4"));
  CHECK_THROWS_AS(unpack<3>(std::span<std::byte const>(stream).first(3), codes), error);
  codes[4] = 8;
  CHECK_THROWS_WITH(pack<3>(codes, stream), Catch::Contains("more than 3 bits"));
  CHECK(std::all_of(stream.begin(), stream.end(), [](std::byte b) { return b == std::byte{0}; }));
  CHECK_THROWS_AS(code_at<3>(stream, 11), error);
  CHECK(code_at<3>(stream, 9) == 0);
  CHECK_THROWS_AS(code_at<3>({}, 0), error);
  CHECK_THROWS_AS(code_at<8>(stream, std::numeric_limits<std::size_t>::max()), error);
}
