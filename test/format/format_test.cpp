#include "kvquant/format/format.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/format/formats.hpp"

namespace {

using namespace kvquant;

constexpr float infinity = std::numeric_limits<float>::infinity();

std::vector<float> random_levels(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> levels(count);
  for (float& level : levels) level = normal(random);
  std::sort(levels.begin(), levels.end());
  return levels;
}

/// By definition: the nearest level, of two as near the lower, of equal ones the first. Distances are exact in
/// binary128 for numbers within a factor of 2^80 or so.
std::size_t nearest(std::vector<float> const& levels, float x) {
  x = std::clamp(x, levels.front(), levels.back());
  std::size_t best = 0;
  auto const distance = [&](std::size_t i) {
    __extension__ using quadruple = __float128;
    quadruple const difference = static_cast<quadruple>(x) - levels[i];
    return difference < 0 ? -difference : difference;
  };
  for (std::size_t i = 1; i < levels.size(); ++i)
    if (distance(i) < distance(best)) best = i;
  return best;
}

/// Where the choice could go wrong: levels, midpoints, their neighbours, and the ends of the line.
std::vector<float> critical_inputs(std::vector<float> const& levels) {
  std::vector<float> inputs{0.0f, -0.0f, infinity, -infinity, std::numeric_limits<float>::max()};
  auto const around = [&](float x) {
    inputs.push_back(x);
    if (x != 0) inputs.insert(inputs.end(), {std::nextafter(x, -infinity), std::nextafter(x, infinity)});
  };
  for (std::size_t i = 0; i < levels.size(); ++i) {
    around(levels[i]);
    if (i > 0) around(static_cast<float>((static_cast<double>(levels[i - 1]) + static_cast<double>(levels[i])) / 2));
  }
  return inputs;
}

template <Format F>
void check_codec(typename F::table const& table, std::vector<float> const& levels) {
  for (float const x : critical_inputs(levels)) {
    CAPTURE(F::bits, x);
    REQUIRE(F::encode(table, x) == nearest(levels, x));
  }
  for (float const x : random_levels(500, 11)) REQUIRE(F::encode(table, x) == nearest(levels, x));
}

template <Format F>
std::vector<float> decoded_levels(typename F::table const& table) {
  std::vector<float> levels;
  for (unsigned code = 0; code < 1u << F::bits; ++code)
    levels.push_back(F::decode(table, static_cast<typename F::code_type>(code)));
  return levels;
}

using fitted_formats = std::tuple<nuq<1>, nuq<2>, nuq<3>, nuq<4>, nuq<5>, nuq<6>, nuq<7>, nuq<8>>;
using fixed_formats = std::tuple<uniform<1>, uniform<2>, uniform<3>, uniform<4>, uniform<5>, uniform<6>, uniform<7>,
                                 uniform<8>, normal_float<2>, normal_float<3>, normal_float<4>, normal_float<8>>;

}  // namespace

TEMPLATE_LIST_TEST_CASE("fitted levels: codes are those of the nearest level", "[format]", fitted_formats) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    auto const levels = random_levels(1u << TestType::bits, seed);
    auto const table = TestType::make_table(levels);
    check_codec<TestType>(table, levels);
    REQUIRE(decoded_levels<TestType>(table) == levels);
  }
}

TEMPLATE_LIST_TEST_CASE("fixed levels: codes are those of the nearest level", "[format]", fixed_formats) {
  auto const table = TestType::default_table();
  auto const levels = decoded_levels<TestType>(table);
  REQUIRE(std::is_sorted(levels.begin(), levels.end(), std::less_equal<>()));
  REQUIRE(levels.front() == -1.0f);
  REQUIRE(levels.back() == 1.0f);
  check_codec<TestType>(table, levels);
}

TEMPLATE_LIST_TEST_CASE("what a table encodes never falls as the value rises", "[format]", fitted_formats) {
  auto const table = TestType::make_table(random_levels(1u << TestType::bits, 5));
  auto const values = random_levels(2000, 6);
  for (std::size_t i = 1; i < values.size(); ++i)
    REQUIRE(TestType::encode(table, values[i - 1]) <= TestType::encode(table, values[i]));
}

TEST_CASE("of equal levels the first is encoded", "[format]") {
  std::vector<std::vector<float>> const cases = {
      {0, 0, 0, 0, 1, 1, 2, 2}, {-1, -1, 0, 0, 0, 0, 0, 3}, {1, 2, 3, 4, 5, 6, 7, 7}, {5, 5, 5, 5, 5, 5, 5, 5}};
  for (auto const& levels : cases) check_codec<nuq<3>>(nuq<3>::make_table(levels), levels);
  auto const table = nuq<2>::make_table(std::vector<float>{1, 1, 1, 2});
  CHECK(nuq<2>::encode(table, 1.4f) == 0);
  CHECK(nuq<2>::encode(table, 1.5f) == 0);
  CHECK(nuq<2>::encode(table, 1.6f) == 3);
}

TEST_CASE("levels of very different size, tiny and huge, have exact midpoints", "[format]") {
  float const huge = std::numeric_limits<float>::max(), tiny = std::numeric_limits<float>::denorm_min();
  std::vector<std::vector<float>> const cases = {{-2 * tiny, 0, tiny, 3 * tiny},
                                                 {-1, -1e-20f, 1e-20f, 1},
                                                 {-huge, 0.75f * huge, 0.875f * huge, huge},
                                                 {-1, 1, 16777216, 16777218}};
  for (auto const& levels : cases) check_codec<nuq<2>>(nuq<2>::make_table(levels), levels);
  // The midpoints are -huge / 2 - tiny / 2, 0 and huge / 2 + tiny / 2: halves of huge are just this side of them.
  auto const table = nuq<2>::make_table(std::vector<float>{-huge, -tiny, tiny, huge});
  CHECK(nuq<2>::encode(table, -huge / 2) == 1);
  CHECK(nuq<2>::encode(table, std::nextafter(-huge / 2, -infinity)) == 0);
  CHECK(nuq<2>::encode(table, 0) == 1);
  CHECK(nuq<2>::encode(table, tiny) == 2);
  CHECK(nuq<2>::encode(table, huge / 2) == 2);
  CHECK(nuq<2>::encode(table, std::nextafter(huge / 2, infinity)) == 3);
  auto const even = uniform<2>::default_table();
  CHECK(uniform<2>::encode(even, -tiny) == 1);
  CHECK(uniform<2>::encode(even, 0) == 1);
  CHECK(uniform<2>::encode(even, tiny) == 2);
}

TEST_CASE("decode levels may differ from encode levels", "[format]") {
  std::vector<float> const levels{-1, 0, 1, 2}, decode_levels{-1.5f, 0.25f, 1.25f, 4};
  auto const table = nuq<2>::make_table(levels, decode_levels);
  check_codec<nuq<2>>(table, levels);
  CHECK(decoded_levels<nuq<2>>(table) == decode_levels);
}

TEST_CASE("levels that cannot be are refused by name", "[format]") {
  auto const make = [](std::vector<float> const& levels) { return nuq<2>::make_table(levels); };
  CHECK_THROWS_WITH(make({1, 2, 3}), Catch::Contains("nuq: 3 levels, expected 4"));
  CHECK_THROWS_WITH(make({}), Catch::Contains("nuq: 0 levels"));
  CHECK_THROWS_WITH(make({0, 1, 3, 2}), Catch::Contains("level 3 is 2") && Catch::Contains("the one before, 3"));
  CHECK_THROWS_WITH(make({0, 1, 2, infinity}), Catch::Contains("level 3 is inf"));
  CHECK_THROWS_WITH(make({std::nanf(""), 1, 2, 3}), Catch::Contains("level 0 is nan"));
  std::vector<float> const good{0, 1, 2, 3}, falling{0, -1, 2, 3}, short_one{0};
  CHECK_THROWS_AS(nuq<2>::make_table(good, falling), error);
  CHECK_THROWS_AS(nuq<2>::make_table(good, short_one), error);
}

TEST_CASE("normal_float<4> has the published levels", "[format]") {
  // QLoRA, appendix E.
  std::array<double, 16> const published = {-1.0,
                                            -0.6961928009986877,
                                            -0.5250730514526367,
                                            -0.39491748809814453,
                                            -0.28444138169288635,
                                            -0.18477343022823334,
                                            -0.09105003625154495,
                                            0.0,
                                            0.07958029955625534,
                                            0.16093020141124725,
                                            0.24611230194568634,
                                            0.33791524171829224,
                                            0.44070982933044434,
                                            0.5626170039176941,
                                            0.7229568362236023,
                                            1.0};
  auto const table = normal_float<4>::default_table();
  for (std::size_t i = 0; i < published.size(); ++i) CHECK(std::fabs(table.level[i] - published[i]) < 1e-6);
}

TEST_CASE("the normal quantile inverts the distribution", "[format]") {
  for (double p = 0.5; p <= 0.999; p += 0.0005) {
    double const x = detail::normal_quantile(p);
    REQUIRE(std::fabs(0.5 * std::erfc(-x / std::sqrt(2.0)) - p) < 1e-14);
  }
}

TEMPLATE_TEST_CASE("every normal float has an exact zero and probabilities in even steps", "[format]", normal_float<2>,
                   normal_float<3>, normal_float<4>, normal_float<8>) {
  auto const levels = decoded_levels<TestType>(TestType::default_table());
  std::size_t const zero = levels.size() / 2 - 1;
  REQUIRE(levels[zero] == 0.0f);
  double const n = static_cast<double>(levels.size()), outermost = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2;
  double const scale = detail::normal_quantile(outermost);
  auto const probability = [&](float level) { return 0.5 * std::erfc(-level * scale / std::sqrt(2.0)); };
  for (std::size_t i = 0; i < levels.size(); ++i) {
    auto const distance = static_cast<double>(i) - static_cast<double>(zero);
    double const step = (outermost - 0.5) / (distance < 0 ? n / 2 - 1 : n / 2);
    REQUIRE(probability(levels[i]) == Approx(0.5 + distance * step).margin(1e-7));
  }
}

TEST_CASE("uniform levels are even and symmetric", "[format]") {
  auto const levels = decoded_levels<uniform<2>>(uniform<2>::default_table());
  CHECK(levels == std::vector<float>{-1, -1 / 3.0f, 1 / 3.0f, 1});
  auto const many = decoded_levels<uniform<8>>(uniform<8>::default_table());
  for (std::size_t i = 0; i < many.size(); ++i) {
    REQUIRE(many[i] == -many[255 - i]);
    REQUIRE(many[i] == Approx(-1 + 2.0 * static_cast<double>(i) / 255).margin(1e-7));
  }
}

TEST_CASE("passthrough is binary16, kept finite", "[format]") {
  auto const table = passthrough::default_table();
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    float const x = to_float(half{static_cast<std::uint16_t>(bits)});
    if (std::isfinite(x)) REQUIRE(passthrough::encode(table, x) == bits);
  }
  CHECK(passthrough::decode(table, passthrough::encode(table, 1e9f)) == 65504.0f);
  CHECK(passthrough::decode(table, passthrough::encode(table, -infinity)) == -65504.0f);
}

TEST_CASE("codecs work at compile time", "[format]") {
  constexpr auto table = uniform<3>::default_table();
  STATIC_REQUIRE(uniform<3>::encode(table, 0.9f) == 7);
  STATIC_REQUIRE(uniform<3>::encode(table, 0.0f) == 3);
  STATIC_REQUIRE(normal_float<3>::decode(normal_float<3>::default_table(), 3) == 0.0f);
  STATIC_REQUIRE(passthrough::decode({}, passthrough::encode({}, 0.5f)) == 0.5f);
}
