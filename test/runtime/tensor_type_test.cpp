#include "runtime/tensor_type.hpp"

#include <array>
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"
#include "test/support/gguf_writer.hpp"

namespace kvquant::runtime {
namespace {

using test::byte_sink;
using enum tensor_type;

constexpr std::array all_types{f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k};

// binary16 by its bits, so that expectations do not rest on our own conversion.
constexpr std::uint16_t one = 0x3c00, one_half = 0x3800, minus_quarter = 0xb400, three = 0x4200;

std::vector<float> decode(tensor_type type, byte_sink const& blocks) {
  std::vector<float> out(blocks.size() / traits(type).block_bytes * traits(type).block);
  dequantize(type, blocks.bytes(), out);
  return out;
}

/// 16 bytes: i in the low nibble of byte i, 15 − i in the high one.
void put_ramp(byte_sink& out) {
  for (int i = 0; i < 16; ++i) out.put(static_cast<std::uint8_t>(i | (15 - i) << 4));
}
int ramp(int element) { return element < 16 ? element : 31 - element; }

// Scales 1 2 3 4 17 34 51 63 and minima 5 6 7 8 32 16 0 63 of the K types, packed by hand: the top two bits of the last
// four stand above the first four, their nibbles share the last four bytes.
constexpr std::array<std::uint8_t, 12> packed_scales{0x41, 0x82, 0xc3, 0xc4, 0x85, 0x46,
                                                     0x07, 0xc8, 0x01, 0x02, 0x03, 0xff};
constexpr std::array k_scales{1, 2, 3, 4, 17, 34, 51, 63};
constexpr std::array k_minima{5, 6, 7, 8, 32, 16, 0, 63};

float exact_half(std::uint16_t bits) {
  int const exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float const sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa != 0 ? std::nanf("") : sign * std::numeric_limits<float>::infinity();
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                               : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25));
}

template <class F>
errc code_of(F&& f) {
  try {
    f();
  } catch (error const& e) {
    return e.code;
  }
  FAIL("nothing was thrown");
  return {};
}

TEST_CASE("type table") {
  for (tensor_type const type : all_types) {
    auto const& t = traits(type);
    CHECK(t.type == type);
    CHECK(find_tensor_type(static_cast<std::uint32_t>(type))->name == t.name);
    CHECK(tensor_type_name(static_cast<std::uint32_t>(type)) == t.name);
  }
  CHECK(traits(q4_1).block_bytes == 20);
  CHECK(traits(q6_k).block == 256);
  CHECK_FALSE(find_tensor_type(16));
  CHECK(tensor_type_name(16) == "IQ2_XXS");
  CHECK(tensor_type_name(4) == "type 4");
  CHECK(tensor_type_name(4'000'000'000) == "type 4000000000");
  CHECK(code_of([] { traits(static_cast<tensor_type>(16)); }) == errc::bad_format);
}

TEST_CASE("F32 and BF16") {
  CHECK(decode(f32, byte_sink().put(1.5f).put(-0.0f)) == std::vector{1.5f, -0.0f});
  CHECK(decode(bf16, byte_sink().put(std::uint16_t{0x3fc0}).put(std::uint16_t{0xc2f7})) == std::vector{1.5f, -123.5f});
}

TEST_CASE("F16: every bit pattern") {
  byte_sink all;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) all.put(static_cast<std::uint16_t>(bits));
  auto const decoded = decode(f16, all);
  std::size_t wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    float const expected = exact_half(static_cast<std::uint16_t>(bits));
    bool const same = std::isnan(expected)
                          ? std::isnan(decoded[bits])
                          : std::bit_cast<std::uint32_t>(decoded[bits]) == std::bit_cast<std::uint32_t>(expected);
    wrong += same ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("golden Q4_0, Q4_1") {
  byte_sink symmetric, affine;
  symmetric.put(one_half);
  affine.put(one_half).put(minus_quarter);
  put_ramp(symmetric);
  put_ramp(affine);
  auto const a = decode(q4_0, symmetric), b = decode(q4_1, affine);
  CHECK(a[0] == -4.0f);
  CHECK(a[31] == -4.0f);
  CHECK(b[15] == 7.25f);
  for (int i = 0; i < 32; ++i) {
    CHECK(a[static_cast<std::size_t>(i)] == 0.5f * static_cast<float>(ramp(i) - 8));
    CHECK(b[static_cast<std::size_t>(i)] == 0.5f * static_cast<float>(ramp(i)) - 0.25f);
  }
}

TEST_CASE("golden Q5_0, Q5_1") {
  constexpr std::uint32_t fifth = 0x8001'a50f;
  byte_sink symmetric, affine;
  symmetric.put(one_half).put(fifth);
  affine.put(three).put(one).put(fifth);
  put_ramp(symmetric);
  put_ramp(affine);
  auto const a = decode(q5_0, symmetric), b = decode(q5_1, affine);
  CHECK(a[0] == 0.0f);    // code 16
  CHECK(a[4] == -6.0f);   // code 4
  CHECK(b[16] == 94.0f);  // code 31
  CHECK(b[31] == 49.0f);  // code 16
  for (int i = 0; i < 32; ++i) {
    int const code = ramp(i) + ((fifth >> i & 1) != 0 ? 16 : 0);
    CHECK(a[static_cast<std::size_t>(i)] == 0.5f * static_cast<float>(code - 16));
    CHECK(b[static_cast<std::size_t>(i)] == 3.0f * static_cast<float>(code) + 1.0f);
  }
}

TEST_CASE("golden Q8_0") {
  byte_sink block;
  block.put(minus_quarter);
  for (int i = 0; i < 32; ++i) block.put(static_cast<std::int8_t>(8 * i - 128));
  auto const x = decode(q8_0, block);
  CHECK(x[0] == 32.0f);
  CHECK(x[31] == -30.0f);
  for (int i = 0; i < 32; ++i) CHECK(x[static_cast<std::size_t>(i)] == -0.25f * static_cast<float>(8 * i - 128));
}

TEST_CASE("golden Q4_K, Q5_K") {
  byte_sink four, five;
  for (auto* block : {&four, &five}) {
    block->put(one).put(one_half);
    for (std::uint8_t const byte : packed_scales) block->put(byte);
  }
  for (int i = 0; i < 32; ++i) five.put(static_cast<std::uint8_t>(37 * i + 11));  // the fifth bits
  for (int pair = 0; pair < 4; ++pair) {
    for (auto* block : {&four, &five}) {
      put_ramp(*block);
      put_ramp(*block);
    }
  }
  auto const a = decode(q4_k, four), b = decode(q5_k, five);
  REQUIRE(a.size() == 256);
  CHECK(a[1] == -1.5f);     // 1 · 1 − 2.5
  CHECK(a[255] == -31.5f);  // 63 · 0 − 31.5
  CHECK(b[0] == 13.5f);     // 1 · (0 + 16) − 2.5: bit 0 of 11 is set
  for (std::size_t e = 0; e < 256; ++e) {
    std::size_t const j = e / 32, i = e % 32;
    int const nibble = j % 2 == 0 ? static_cast<int>(i % 16) : 15 - static_cast<int>(i % 16);
    int const fifth = static_cast<int>((37 * i + 11) % 256 >> j & 1);
    float const minimum = 0.5f * static_cast<float>(k_minima[j]);
    CHECK(a[e] == static_cast<float>(k_scales[j] * nibble) - minimum);
    CHECK(b[e] == static_cast<float>(k_scales[j] * (nibble + 16 * fifth)) - minimum);
  }
}

TEST_CASE("golden Q6_K") {
  std::array<int, 128> low{};
  std::array<int, 64> high{};
  std::array<int, 16> scale{};
  byte_sink block;
  for (int i = 0; i < 128; ++i) block.put(static_cast<std::uint8_t>(low[static_cast<std::size_t>(i)] = 89 * i % 256));
  for (int i = 0; i < 64; ++i)
    block.put(static_cast<std::uint8_t>(high[static_cast<std::size_t>(i)] = (255 - 3 * i) & 255));
  for (int i = 0; i < 16; ++i) block.put(static_cast<std::int8_t>(scale[static_cast<std::size_t>(i)] = 9 * i - 70));
  block.put(one_half);
  auto const x = decode(q6_k, block);
  CHECK(x[0] == -560.0f);  // 0.5 · −70 · ((0 | 3 · 16) − 32)
  // Element e of half h = e / 128, run r = e / 32 % 4: low bits from byte 64 h + 32 (r % 2) + i, high from 32 h + i.
  for (std::size_t e = 0; e < 256; ++e) {
    std::size_t const h = e / 128, r = e / 32 % 4, i = e % 32;
    int const nibble = low[64 * h + 32 * (r % 2) + i] >> (r < 2 ? 0 : 4) & 15;
    int const code = nibble + 16 * (high[32 * h + i] >> 2 * r & 3) - 32;
    CHECK(x[e] == 0.5f * static_cast<float>(scale[e / 16] * code));
  }
}

TEST_CASE("blocks at odd addresses decode the same") {
  std::mt19937 random(1);
  for (tensor_type const type : all_types) {
    auto const blocks = test::random_blocks(type, 768, random);
    std::vector<std::byte> shifted(blocks.size() + 1);
    std::ranges::copy(blocks, shifted.begin() + 1);
    std::vector<float> a(768), b(768);
    dequantize(type, blocks, a);
    dequantize(type, std::span(shifted).subspan(1), b);
    INFO(traits(type).name);
    CHECK(a == b);
    CHECK(std::ranges::all_of(a, [](float x) { return std::isfinite(x); }));
  }
}

TEST_CASE("quantizing for tests loses at most half a step") {
  std::mt19937 random(2);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> x(320);
  std::ranges::generate(x, [&] { return uniform(random); });
  // Half a step of the widest possible block, and binary16's rounding of its scale and minimum.
  struct {
    tensor_type type;
    float bound;
  } constexpr cases[] = {{f32, 0},          {f16, 0x1p-11f},    {bf16, 0x1p-8f},    {q8_0, 0.005f},
                         {q4_0, 1.01f / 8}, {q5_0, 1.01f / 16}, {q4_1, 1.02f / 15}, {q5_1, 1.02f / 31}};
  for (auto const& [type, bound] : cases) {
    std::vector<float> y(x.size());
    dequantize(type, test::quantize_blocks(type, x), y);
    INFO(traits(type).name);
    for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(std::abs(x[i] - y[i]) <= bound);
  }
}

TEST_CASE("dequantize rejects sizes that do not fit") {
  std::vector<std::byte> const blocks(40);
  std::vector<float> out(64);
  CHECK_NOTHROW(dequantize(q4_1, blocks, out));
  CHECK_NOTHROW(dequantize(q4_1, {}, std::span<float>()));
  auto const code = [&](std::size_t bytes, std::size_t elements) {
    return code_of([&] { dequantize(q4_1, std::span(blocks).first(bytes), std::span(out).first(elements)); });
  };
  CHECK(code(39, 64) == errc::bad_shape);
  CHECK(code(40, 63) == errc::bad_shape);
  CHECK(code(40, 32) == errc::bad_shape);
  CHECK(code(20, 64) == errc::bad_shape);
  CHECK(code_of([&] { dequantize(static_cast<tensor_type>(10), blocks, out); }) == errc::bad_format);
}

}  // namespace
}  // namespace kvquant::runtime
