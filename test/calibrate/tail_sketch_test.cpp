#include "kvquant/calibrate/tail_sketch.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <random>

using namespace kvquant;

namespace {

float quantile_of_sorted(std::vector<float> const& sorted, double q) {
  double const rank = q * static_cast<double>(sorted.size() - 1);
  auto const whole = static_cast<std::size_t>(rank);
  auto const part = static_cast<float>(rank - static_cast<double>(whole));
  float const next = sorted[std::min(whole + 1, sorted.size() - 1)];
  return sorted[whole] + part * (next - sorted[whole]);
}

}  // namespace

TEST_CASE("outer quantiles are those of all the values", "[calibrate]") {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  for (std::size_t const count : {1u, 2u, 3u, 100u, 1000u, 20000u}) {
    for (double const fraction : {0.0, 0.01, 0.1}) {
      tail_sketch sketch(tail_sketch::capacity_for(fraction, count));
      std::vector<float> values(count);
      for (float& x : values) sketch.add(x = std::round(100 * normal(random)) / 100);  // with ties
      std::sort(values.begin(), values.end());
      auto const [low, high] = sketch.quantiles(fraction / 2);
      CHECK(low == quantile_of_sorted(values, fraction / 2));
      CHECK(high == Approx(quantile_of_sorted(values, 1 - fraction / 2)).epsilon(1e-5));
      CHECK(sketch.count() == count);
    }
  }
}

TEST_CASE("tails merge exactly, in any grouping", "[calibrate]") {
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal;
  std::size_t const capacity = tail_sketch::capacity_for(0.02, 3000);
  tail_sketch whole(capacity), a(capacity), b(capacity), c(capacity);
  for (int i = 0; i < 3000; ++i) {
    float const x = normal(random);
    whole.add(x);
    (i % 3 == 0 ? a : i % 3 == 1 ? b : c).add(x);
  }
  c.merge(a);
  b.merge(c);
  CHECK(b.count() == 3000);
  CHECK(b.quantiles(0.01) == whole.quantiles(0.01));
}

TEST_CASE("a sketch says what it cannot answer", "[calibrate]") {
  tail_sketch sketch(tail_sketch::capacity_for(0.01, 100));
  CHECK_THROWS_WITH(sketch.quantiles(0.005), Catch::Contains("no values"));
  for (int i = 0; i < 100; ++i) sketch.add(static_cast<float>(i));
  CHECK_THROWS_AS(sketch.quantiles(0.4), error);
  CHECK_THROWS_AS(sketch.merge(tail_sketch(99)), error);
  CHECK_THROWS_AS(tail_sketch(0), error);
  CHECK_THROWS_WITH(sketch.add(std::nanf("")), Catch::Contains("value 100"));
  CHECK(sketch.count() == 100);
}
