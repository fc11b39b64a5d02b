#include "kvquant/rope/rope.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"
#include "test/support/exact_rotation.hpp"
#include "test/support/thrown.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;

constexpr std::int64_t million = 1'000'000;
constexpr std::array<std::int64_t, 9> far_positions{
    0, 1, -1, 4095, million, 10 * million, -10 * million, rope::max_position - 1, -rope::max_position};

template <class T>
std::vector<T> random_head(std::size_t channels, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> head(channels);
  for (T& x : head) x = static_cast<T>(normal(random));
  return head;
}

double dot(std::vector<double> const& a, std::vector<double> const& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
std::vector<T> rotated(rope const& rotation, std::vector<T> head, std::int64_t position) {
  rotation.rotate(std::span(head), position);
  return head;
}

template <class T>
std::vector<T> rotated_back(rope const& rotation, std::vector<T> head, std::int64_t position) {
  rotation.rotate_back(std::span(head), position);
  return head;
}

template <class T>
double largest_difference(std::vector<T> const& a, std::vector<double> const& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  return largest;
}

rope_config yarn(double factor) { return {.scaling = rope_scaling::yarn, .factor = factor, .original_context = 4096}; }

/// Everything that can be told apart in how pairs are chosen and turned.
std::vector<rope_config> varied_configs() {
  return {{},
          {.pairing = rope_pairing::interleaved},
          {.theta = 1e6, .rotary_dim = 6},
          {.pairing = rope_pairing::interleaved, .rotary_dim = 10},
          yarn(16)};
}

}  // namespace

TEST_CASE("pairs half a rotary dimension apart turn against each other", "[rope]") {
  // theta 4 over 4 channels: 1 and 1/2 radians a token.
  rope const rotation({.theta = 4}, 4);
  REQUIRE(rotation.rotary_dim() == 4);
  auto const head = rotated<double>(rotation, {1, 2, 3, 4}, 3);
  CHECK(head[0] == Approx(1 * std::cos(3.0) - 3 * std::sin(3.0)).epsilon(1e-14));
  CHECK(head[2] == Approx(1 * std::sin(3.0) + 3 * std::cos(3.0)).epsilon(1e-14));
  CHECK(head[1] == Approx(2 * std::cos(1.5) - 4 * std::sin(1.5)).epsilon(1e-14));
  CHECK(head[3] == Approx(2 * std::sin(1.5) + 4 * std::cos(1.5)).epsilon(1e-14));
}

TEST_CASE("interleaved pairs are neighbours", "[rope]") {
  rope const rotation({.pairing = rope_pairing::interleaved, .theta = 4}, 4);
  CHECK(rotation.pairing() == rope_pairing::interleaved);
  auto const head = rotated<double>(rotation, {1, 2, 3, 4}, 3);
  CHECK(head[0] == Approx(1 * std::cos(3.0) - 2 * std::sin(3.0)).epsilon(1e-14));
  CHECK(head[1] == Approx(1 * std::sin(3.0) + 2 * std::cos(3.0)).epsilon(1e-14));
  CHECK(head[2] == Approx(3 * std::cos(1.5) - 4 * std::sin(1.5)).epsilon(1e-14));
  CHECK(head[3] == Approx(3 * std::sin(1.5) + 4 * std::cos(1.5)).epsilon(1e-14));
}

TEST_CASE("both pairings are the same rotation but for the order of channels", "[rope]") {
  constexpr std::size_t pairs = 8;
  auto const head = random_head<double>(2 * pairs, 1);
  std::vector<double> interleaved(2 * pairs);
  for (std::size_t i = 0; i < 2 * pairs; ++i) interleaved[i % pairs * 2 + i / pairs] = head[i];
  auto const split = rotated(rope({}, 2 * pairs), head, 77);
  auto const neighbours = rotated(rope({.pairing = rope_pairing::interleaved}, 2 * pairs), interleaved, 77);
  for (std::size_t i = 0; i < 2 * pairs; ++i) CHECK(split[i] == neighbours[i % pairs * 2 + i / pairs]);
}

TEMPLATE_TEST_CASE("a head turns as the definition says, at any position", "[rope]", float, double) {
  for (auto const& config : varied_configs())
    for (int const head_dim : {10, 64}) {
      rope const rotation(config, head_dim);
      auto const head = random_head<TestType>(static_cast<std::size_t>(head_dim), 2);
      for (std::int64_t const position : far_positions) {
        CAPTURE(head_dim, position, rotation.rotary_dim());
        auto const expected = exactly_rotated(std::span(head), config.pairing, rotation.inverse_frequencies(), position,
                                              rotation.attention_factor());
        double const tolerance = 16 * std::numeric_limits<TestType>::epsilon();
        REQUIRE(largest_difference(rotated(rotation, head, position), expected) < tolerance);
      }
    }
}

TEST_CASE("channels beyond the rotary dimension stay as they are", "[rope]") {
  auto const pairing = GENERATE(rope_pairing::half_split, rope_pairing::interleaved);
  rope const rotation({.pairing = pairing, .rotary_dim = 6}, 9);
  CHECK(rotation.head_dim() == 9);
  CHECK(rotation.rotary_dim() == 6);
  auto const head = random_head<float>(9, 3);
  auto const turned = rotated(rotation, head, 12345);
  for (std::size_t i = 0; i < 6; ++i) CHECK(turned[i] != head[i]);
  for (std::size_t i = 6; i < 9; ++i) CHECK(turned[i] == head[i]);
}

TEST_CASE("an odd head turns where its rotary dimension is even", "[rope]") {
  CHECK_NOTHROW(rope({.rotary_dim = 2}, 3));
  CHECK_THROWS_AS(rope({}, 3), error);
}

TEST_CASE("cosine and sine hold to 4e-16 at every position there is", "[rope]") {
  std::vector<float> wide_range(32, 1.0f);
  wide_range[0] = 0.16f;  // 6.25 radians a token: nearly a turn
  for (auto const& config : {rope_config{}, rope_config{.theta = 5e5}, rope_config{.frequency_factors = wide_range}}) {
    rope const rotation(config, 64);
    std::mt19937_64 random(4);
    std::vector<std::int64_t> positions(far_positions.begin(), far_positions.end());
    for (int i = 0; i < 300; ++i) positions.push_back(static_cast<std::int64_t>(random() >> 29) - rope::max_position);
    for (std::int64_t const position : positions) {
      auto const table = rotation.angle_table<double>(position, 1);
      for (std::size_t i = 0; i < table.pairs(); ++i) {
        auto const [c, s] = exact_angle_of(position, rotation.inverse_frequencies()[i]);
        CAPTURE(position, i);
        REQUIRE(std::abs(static_cast<double>(table[0].cos[i] - c)) <= 4e-16);
        REQUIRE(std::abs(static_cast<double>(table[0].sin[i] - s)) <= 4e-16);
      }
    }
  }
}

TEST_CASE("at 10M tokens angles in binary32 would be lost, and these are not", "[rope]") {
  rope const rotation({}, 128);
  std::int64_t const first = 10 * million - 64;
  auto const table = rotation.angle_table<float>(first, 64);
  double ours = 0, binary32 = 0;
  for (std::size_t t = 0; t < 64; ++t)
    for (std::size_t i = 0; i < 64; ++i) {
      std::int64_t const position = first + static_cast<std::int64_t>(t);
      double const frequency = rotation.inverse_frequencies()[i];
      auto const exact = static_cast<double>(exact_angle_of(position, frequency).cos);
      ours = std::max(ours, std::abs(static_cast<double>(table[t].cos[i]) - exact));
      float const angle = static_cast<float>(position) * static_cast<float>(frequency);
      binary32 = std::max(binary32, std::abs(static_cast<double>(std::cos(angle)) - exact));
    }
  CHECK(ours < 6e-8);
  CHECK(binary32 > 0.1);
}

TEST_CASE("a page reads with one small table wherever it lies", "[rope]") {
  constexpr std::size_t page_tokens = 64, head_dim = 64;
  for (auto const& config : varied_configs()) {
    rope const rotation(config, head_dim);
    auto const page = rotation.angle_table<double>(0, page_tokens);
    auto const q = random_head<double>(head_dim, 5);
    for (std::int64_t const base :
         std::array<std::int64_t, 5>{0, 65, million, 10 * million, rope::max_position - 1000}) {
      for (std::int64_t const distance : {0, 63, 999}) {
        auto const q_at_page = rotated(rotation, q, distance);
        auto const q_absolute = rotated(rotation, q, base + distance);
        for (std::size_t j = 0; j < page_tokens; ++j) {
          auto const k = random_head<double>(head_dim, static_cast<unsigned>(100 + j));
          auto k_in_page = k;
          rotation.rotate(std::span(k_in_page), page[j]);
          double const absolute = dot(q_absolute, rotated(rotation, k, base + static_cast<std::int64_t>(j)));
          double const scale = std::sqrt(dot(q, q) * dot(k, k)) * std::pow(rotation.attention_factor(), 2);
          CAPTURE(base, distance, j);
          REQUIRE(std::abs(dot(q_at_page, k_in_page) - absolute) < 4e-15 * scale);
        }
      }
    }
  }
}

TEST_CASE("rotating back is the transpose", "[rope]") {
  for (auto const& config : varied_configs()) {
    rope const rotation(config, 16);
    auto const x = random_head<double>(16, 6), y = random_head<double>(16, 7);
    for (std::int64_t const position : far_positions)
      CHECK(dot(y, rotated(rotation, x, position)) ==
            Approx(dot(rotated_back(rotation, y, position), x)).margin(1e-13));
  }
}

TEMPLATE_TEST_CASE("rotating back is the inverse, but for the attention factor on both ways", "[rope]", float, double) {
  for (auto const& config : varied_configs()) {
    rope const rotation(config, 16);
    auto const head = random_head<TestType>(16, 8);
    double const factor = rotation.attention_factor() * rotation.attention_factor();
    std::vector<double> expected(head.begin(), head.end());
    for (std::size_t i = 0; i < static_cast<std::size_t>(rotation.rotary_dim()); ++i) expected[i] *= factor;
    for (std::int64_t const position : far_positions) {
      auto const back = rotated_back(rotation, rotated(rotation, head, position), position);
      CHECK(largest_difference(back, expected) < 16 * std::numeric_limits<TestType>::epsilon());
    }
  }
}

TEST_CASE("a rotation keeps lengths, and two add up to one", "[rope]") {
  rope const rotation({.rotary_dim = 12}, 16);
  auto const head = random_head<double>(16, 9);
  auto const turned = rotated(rotation, head, 3 * million);
  CHECK(dot(turned, turned) == Approx(dot(head, head)).epsilon(1e-14));
  CHECK(largest_difference(rotated(rotation, turned, 7 * million), rotated(rotation, head, 10 * million)) < 1e-14);
  CHECK(rotated(rotation, head, 0) == head);
}

TEMPLATE_TEST_CASE("a table holds its positions in order, each as it would be alone", "[rope]", float, double) {
  rope const rotation(yarn(4), 10);
  std::int64_t const first = -3;
  auto const table = rotation.angle_table<TestType>(first, 7);
  CHECK(table.first() == first);
  CHECK(table.count() == 7);
  CHECK(table.pairs() == 5);
  CHECK(table.cos().size() == 35);
  CHECK(table.sin().size() == 35);
  for (std::size_t t = 0; t < 7; ++t) {
    std::int64_t const position = first + static_cast<std::int64_t>(t);
    auto const alone = rotation.angle_table<TestType>(position, 1);
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(table[t].cos[i] == alone.cos()[i]);
      CHECK(table[t].sin[i] == alone.sin()[i]);
      CHECK(&table[t].sin[i] == &table.sin()[t * 5 + i]);
      double const c = std::cos(static_cast<double>(position) * rotation.inverse_frequencies()[i]);
      CHECK(static_cast<double>(table[t].cos[i]) == Approx(rotation.attention_factor() * c).margin(1e-7));
    }
  }
  CHECK(rotation.angle_table<TestType>(5, 0).count() == 0);
}

TEMPLATE_TEST_CASE("angles can be written where the caller wants them", "[rope]", float, double) {
  for (auto const& config : varied_configs()) {
    rope const rotation(config, 16);
    auto const pairs = static_cast<std::size_t>(rotation.rotary_dim() / 2);
    for (std::int64_t const position : far_positions) {
      std::vector<TestType> cos(pairs + 1, 7), sin(pairs + 1, 7);
      rotation.angles_at(position, std::span(cos).first(pairs), std::span(sin).first(pairs));
      auto const table = rotation.angle_table<TestType>(position, 1);
      CAPTURE(position, pairs);
      CHECK(std::equal(table.cos().begin(), table.cos().end(), cos.begin()));
      CHECK(std::equal(table.sin().begin(), table.sin().end(), sin.begin()));
      CHECK((cos[pairs] == 7 && sin[pairs] == 7));
    }
  }
}

TEST_CASE("angles are refused for positions out of reach and room of another size", "[rope]") {
  rope const rotation({}, 8);
  std::vector<double> room(5), more(5);
  auto const angles = [&](std::int64_t position, std::size_t cosines, std::size_t sines) {
    return error_of(
        [&] { rotation.angles_at(position, std::span(room).first(cosines), std::span(more).first(sines)); });
  };
  for (std::int64_t const position : {rope::max_position + 1, -rope::max_position - 1})
    CHECK(angles(position, 4, 4).code == errc::bad_value);
  for (auto const& [cosines, sines] : {std::pair{3, 4}, {4, 3}, {5, 4}, {4, 5}}) {
    auto const refusal = angles(0, static_cast<std::size_t>(cosines), static_cast<std::size_t>(sines));
    CHECK(refusal.code == errc::bad_shape);
    CHECK_THAT(refusal.text, says(text("room for ", cosines, " cosines and ", sines, " sines, expected 4 of each")));
  }
  CHECK_NOTHROW(rotation.angles_at(rope::max_position, std::span(room).first(4), std::span(more).first(4)));
  CHECK_NOTHROW(rope({.enabled = false}, 8).angles_at(5, std::span<double>{}, std::span<double>{}));
}

TEMPLATE_TEST_CASE("a disabled rope is the identity", "[rope]", float, double) {
  rope const none({.enabled = false, .theta = -1, .rotary_dim = 7, .scaling = rope_scaling::yarn}, 5);
  CHECK(none.head_dim() == 5);
  CHECK(none.rotary_dim() == 0);
  CHECK(none.inverse_frequencies().empty());
  CHECK(none.attention_factor() == 1);
  auto const head = random_head<TestType>(5, 10);
  for (std::int64_t const position : far_positions) {
    CHECK(rotated(none, head, position) == head);
    CHECK(rotated_back(none, head, position) == head);
  }
  auto const table = none.angle_table<TestType>(0, 3);
  CHECK(table.count() == 3);
  CHECK(table[2].cos.empty());
}
