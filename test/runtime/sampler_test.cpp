#include "runtime/sampler.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "test/support/thrown.hpp"

namespace kvquant::runtime {
namespace {

using scores = std::vector<float>;
constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

std::vector<token_id> draw(sampling_options const& options, scores const& from, std::size_t count) {
  sampler it(options);
  std::vector<token_id> drawn(count);
  std::ranges::generate(drawn, [&] { return it.next(from); });
  return drawn;
}
std::set<token_id> chosen(sampling_options const& options, scores const& from) {
  auto const drawn = draw(options, from, 1000);
  return {drawn.begin(), drawn.end()};
}

/// Scores whose probabilities these are, at a temperature of 1.
scores of_probabilities(std::vector<double> const& probabilities) {
  scores out;
  for (double const p : probabilities) out.push_back(static_cast<float>(std::log(p) + 5));
  return out;
}

/// Ids come as often as the probabilities say, to five standard deviations.
void check_frequencies(sampling_options const& options, scores const& from, std::vector<double> const& expected) {
  constexpr std::size_t count = 20000;
  std::vector<double> found(expected.size());
  for (token_id const id : draw(options, from, count)) found.at(static_cast<std::size_t>(id)) += 1.0 / count;
  for (std::size_t id = 0; id < expected.size(); ++id) {
    INFO("id " << id);
    CHECK(std::abs(found[id] - expected[id]) <= 5 * std::sqrt(expected[id] * (1 - expected[id]) / count));
  }
}

TEST_CASE("at a temperature of 0 the likeliest token comes, of equal ones the first") {
  CHECK(draw({}, {-1, 3, 2}, 3) == std::vector<token_id>{1, 1, 1});
  CHECK(draw({}, {1, 7, 7, -2, 7}, 1) == std::vector<token_id>{1});
  CHECK(draw({}, {-infinity, -5}, 1) == std::vector<token_id>{1});
  CHECK(draw({.top_k = 3, .top_p = 0.9, .seed = 5}, {0, 0, 1, 0}, 2) == std::vector<token_id>{2, 2});
  CHECK(draw({}, {42}, 1) == std::vector<token_id>{0});
}

TEST_CASE("tokens come as often as their probabilities say") {
  auto const even = GENERATE(0.0, 0.05);
  std::vector<double> const probabilities = {0.5 - even, 0.3, 0.15 + even, 0.05};
  check_frequencies({.temperature = 1, .seed = 3}, of_probabilities(probabilities), probabilities);
}

TEST_CASE("the temperature divides the scores") {
  double const odds = std::exp(2 / GENERATE(0.5, 1.0, 4.0));
  double const temperature = 2 / std::log(odds);
  check_frequencies({.temperature = temperature}, {3, 1}, {odds / (1 + odds), 1 / (1 + odds)});
}

TEST_CASE("top_k leaves so many of the likeliest tokens, of equal ones the first") {
  scores const from = {1, 2, 0, 2, 2, 1.5f};
  CHECK(chosen({.temperature = 1, .top_k = 1}, from) == std::set<token_id>{1});
  CHECK(chosen({.temperature = 1, .top_k = 2}, from) == std::set<token_id>{1, 3});
  CHECK(chosen({.temperature = 1, .top_k = 4}, from) == std::set<token_id>{1, 3, 4, 5});
  for (int const all : {0, 6, 100}) CHECK(chosen({.temperature = 1, .top_k = all}, from).size() == 6);
  check_frequencies({.temperature = 1, .top_k = 2}, of_probabilities({0.15, 0.6, 0.05, 0.2}), {0, 0.75, 0, 0.25});
}

TEST_CASE("top_p leaves the likeliest tokens that together have that probability") {
  auto const from = of_probabilities({0.2, 0.5, 0.3});
  for (double const p : {1e-6, 0.3, 0.49}) CHECK(chosen({.temperature = 1, .top_p = p}, from) == std::set<token_id>{1});
  for (double const p : {0.51, 0.79}) CHECK(chosen({.temperature = 1, .top_p = p}, from) == std::set<token_id>{1, 2});
  for (double const p : {0.81, 1.0}) CHECK(chosen({.temperature = 1, .top_p = p}, from).size() == 3);
  check_frequencies({.temperature = 1, .top_p = 0.7}, from, {0, 0.625, 0.375});
}

TEST_CASE("top_p counts the probabilities of what top_k leaves") {
  auto const from = of_probabilities({0.4, 0.3, 0.2, 0.1});
  CHECK(chosen({.temperature = 1, .top_k = 2, .top_p = 0.55}, from) == std::set<token_id>{0});  // 0.4 of 0.7
  CHECK(chosen({.temperature = 1, .top_k = 2, .top_p = 0.6}, from) == std::set<token_id>{0, 1});
}

TEST_CASE("a score of -infinity is never chosen, and large ones do not overflow") {
  CHECK(chosen({.temperature = 100}, {-infinity, 0, -infinity, 1}) == std::set<token_id>{1, 3});
  constexpr float largest = std::numeric_limits<float>::max();
  CHECK(chosen({.temperature = 1}, {largest, -largest, largest}) == std::set<token_id>{0, 2});
}

TEST_CASE("a seed gives the same tokens again, another seed others") {
  scores const from(50, 1.0f);
  auto const drawn = draw({.temperature = 1, .seed = 8}, from, 40);
  CHECK(draw({.temperature = 1, .seed = 8}, from, 40) == drawn);
  CHECK(draw({.temperature = 1, .seed = 9}, from, 40) != drawn);
}

TEST_CASE("a seed's tokens are those of mt19937_64, on every machine") {
  std::uint64_t const seed = 12;
  std::mt19937_64 random(seed);
  for (token_id const id : draw({.temperature = 1, .seed = seed}, scores(4), 200))
    CHECK(id == static_cast<token_id>(random() >> 62));  // equal probabilities: the first two bits
}

TEST_CASE("options that cannot be are refused by name") {
  auto const refusal = [](sampling_options const& options) { return test::error_of([&] { sampler{options}; }); };
  constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN(),
                   endless = std::numeric_limits<double>::infinity();
  for (double const temperature : {-0.5, endless, not_a_number}) {
    auto const found = refusal({.temperature = temperature});
    CHECK(found.code == errc::bad_value);
    CHECK_THAT(found.text, test::says("temperature is "));
  }
  CHECK_THAT(refusal({.top_k = -1}).text, test::says("top_k is -1, expected 0 or more"));
  for (double const p : {0.0, -0.1, 1.01, not_a_number})
    CHECK_THAT(refusal({.top_p = p}).text, test::says("top_p is ") && test::says("at most 1"));
}

TEST_CASE("no scores, and a score that is no number, are refused") {
  for (double const temperature : {0.0, 1.0})
    for (scores const& from : {scores{}, scores{1, nan, 2}, scores{nan}}) {
      auto const found = test::error_of([&] { draw({.temperature = temperature}, from, 1); });
      CHECK(found.code == errc::bad_value);
      CHECK_THAT(found.text, test::says("sampler: no scores, or one that is no number"));
    }
}

}  // namespace
}  // namespace kvquant::runtime
