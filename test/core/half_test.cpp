#include "kvquant/core/half.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

using namespace kvquant;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::uint16_t sign_bit = 0x8000, infinity_bits = 0x7c00;

half from_bits(unsigned bits) { return {static_cast<std::uint16_t>(bits)}; }

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

/// By the definition of the interchange format (IEEE 754, 3.4): 5 bits of exponent biased by 15, 10 of fraction. Reads
/// the exponent of infinity as that of 2^16, where the next number would lie.
double defined_value(std::uint16_t bits) {
  int const exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
  double const magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (bits & sign_bit) != 0 ? -magnitude : magnitude;
}

/// Nearest binary16 by search through all magnitudes, ties to the even fraction. Midpoints have 12 bits: exact.
std::uint16_t nearest_half(float x) {
  static std::vector<double> const midpoints = [] {
    std::vector<double> between;
    for (std::uint16_t bits = 0; bits < infinity_bits; ++bits)
      between.push_back((defined_value(bits) + defined_value(static_cast<std::uint16_t>(bits + 1))) / 2);
    return between;
  }();
  double const magnitude = std::abs(static_cast<double>(x));
  auto const above = std::lower_bound(midpoints.begin(), midpoints.end(), magnitude);
  auto bits = static_cast<std::uint16_t>(above - midpoints.begin());
  if (above != midpoints.end() && *above == magnitude && bits % 2 != 0) ++bits;
  return static_cast<std::uint16_t>(std::signbit(x) ? bits | sign_bit : bits);
}

}  // namespace

TEST_CASE("each finite binary16 number converts exactly and comes back", "[core]") {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    if ((bits & infinity_bits) == infinity_bits) continue;
    half const h = from_bits(bits);
    float const x = to_float(h);
    CAPTURE(bits);
    REQUIRE(static_cast<double>(x) == defined_value(h.bits));
    REQUIRE(std::signbit(x) == ((bits & sign_bit) != 0));
    REQUIRE(to_half(x) == h);
    REQUIRE(bits_of(round_to_half(x)) == bits_of(x));
  }
}

TEST_CASE("infinities and NaN of binary16 convert to their kind and come back as it", "[core]") {
  CHECK(to_float(from_bits(0x7c00)) == infinity);
  CHECK(to_float(from_bits(0xfc00)) == -infinity);
  CHECK(to_half(infinity).bits == 0x7c00);
  CHECK(to_half(-infinity).bits == 0xfc00);
  for (unsigned fraction = 1; fraction < 0x400; ++fraction)
    for (unsigned const sign : {0x0000u, 0x8000u}) {
      float const x = to_float(from_bits(sign | infinity_bits | fraction));
      CAPTURE(sign, fraction);
      REQUIRE(std::isnan(x));
      REQUIRE(std::signbit(x) == (sign != 0));
      half const back = to_half(x);
      REQUIRE((back.bits & 0x7fff) > infinity_bits);
      REQUIRE((back.bits & sign_bit) == sign);
    }
}

TEST_CASE("a NaN stays one even if its payload lies below what binary16 keeps", "[core]") {
  for (std::uint32_t const wide : {0x7f800001u, 0x7f801fffu, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu, 0xff800001u}) {
    CAPTURE(wide);
    CHECK((to_half(float_of(wide)).bits & 0x7fff) > infinity_bits);
    CHECK(std::isnan(round_to_half(float_of(wide))));
  }
}

TEST_CASE("rounding goes to nearest and ties to even between any two neighbours", "[core]") {
  for (std::uint16_t lower = 0; lower < infinity_bits; ++lower) {
    auto const upper = static_cast<std::uint16_t>(lower + 1), even = lower % 2 == 0 ? lower : upper;
    auto const middle = static_cast<float>((defined_value(lower) + defined_value(upper)) / 2);
    CAPTURE(lower);
    REQUIRE(to_half(middle).bits == even);
    REQUIRE(to_half(std::nextafter(middle, 0.0f)).bits == lower);
    REQUIRE(to_half(std::nextafter(middle, infinity)).bits == upper);
    REQUIRE(to_half(-middle).bits == (even | sign_bit));
    REQUIRE(to_half(-std::nextafter(middle, 0.0f)).bits == (lower | sign_bit));
    REQUIRE(to_half(-std::nextafter(middle, infinity)).bits == (upper | sign_bit));
  }
}

TEST_CASE("rounding agrees with a search for the nearest number all over binary32", "[core]") {
  constexpr std::uint32_t stride = 1021;  // prime: every exponent, fractions without a pattern
  for (std::uint64_t wide = 0; wide < (std::uint64_t{1} << 32); wide += stride) {
    float const x = float_of(static_cast<std::uint32_t>(wide));
    if (std::isnan(x)) continue;
    half const h = to_half(x);
    if (h.bits != nearest_half(x)) FAIL("rounds " << x << " to " << h.bits << ", not to " << nearest_half(x));
  }
}

TEST_CASE("magnitudes overflow from 65520 on and vanish up to 2^-25", "[core]") {
  CHECK(to_half(65504.0f).bits == 0x7bff);
  CHECK(to_half(std::nextafter(65520.0f, 0.0f)).bits == 0x7bff);
  CHECK(to_half(65520.0f).bits == infinity_bits);
  CHECK(to_half(-65520.0f).bits == (infinity_bits | sign_bit));
  CHECK(to_half(std::numeric_limits<float>::max()).bits == infinity_bits);
  CHECK(to_half(0x1p-25f).bits == 0);
  CHECK(to_half(-0x1p-25f).bits == sign_bit);
  CHECK(to_half(std::nextafter(0x1p-25f, 1.0f)).bits == 1);
  CHECK(to_half(std::numeric_limits<float>::denorm_min()).bits == 0);
  CHECK(to_half(0.0f).bits == 0);
  CHECK(to_half(-0.0f).bits == sign_bit);
}

TEST_CASE("conversions work at compile time", "[core]") {
  STATIC_REQUIRE(to_half(1.0f).bits == 0x3c00);
  STATIC_REQUIRE(to_half(-0x1p-24f).bits == 0x8001);
  STATIC_REQUIRE(to_float(half{0x0001}) == 0x1p-24f);
  STATIC_REQUIRE(round_to_half(1.0f / 3) == 0x1.554p-2f);
  STATIC_REQUIRE(half{} == half{0});
  STATIC_REQUIRE_FALSE(half{0} == half{0x8000});  // by bits, as a storage type compares
}

TEST_CASE("a whole array converts as its elements do", "[core]") {
  std::array<float, 37> wide{};
  std::array<half, 37> narrow{};
  for (std::size_t i = 0; i < narrow.size(); ++i) narrow[i] = from_bits(static_cast<unsigned>(i * 1777));
  for (std::size_t i = 0; i < wide.size(); ++i) wide[i] = to_float(narrow[i]);
  for (std::size_t i = 0; i < wide.size(); ++i) {
    CAPTURE(i);
    if ((narrow[i].bits & 0x7fff) < infinity_bits)
      CHECK(static_cast<double>(wide[i]) == defined_value(narrow[i].bits));
    else
      CHECK_FALSE(std::isfinite(wide[i]));
  }
}
