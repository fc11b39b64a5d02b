#include "kvquant/quantize/q_norm.hpp"

#include <catch2/catch.hpp>
#include <random>

using namespace kvquant;

TEST_CASE("moments give mean, deviation and squared error", "[quantize]") {
  moments m;
  m.add(1.0, 1.0);
  m.add(3.0, 3.0);
  CHECK(m.mean() == Approx(2.5));
  CHECK(m.deviation() == Approx(std::sqrt(0.75)));
  CHECK(m.squared_error(2.0) == Approx(1.0 + 3.0));
  CHECK(moments{}.mean() == 0.0);
  CHECK(moments{}.deviation() == 0.0);
}

TEST_CASE("Q-Norm gives back the mean and deviation that rounding took", "[quantize]") {
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal(0.2, 0.4);
  moments before, after, restored;
  std::vector<double> rounded;
  for (int i = 0; i < 1000; ++i) {
    double const x = normal(random), y = x > 0 ? 0.5 : -0.25;
    before.add(x, 1 + i % 3);
    after.add(y, 1 + i % 3);
    rounded.push_back(y);
  }
  q_norm const norm = fit_q_norm(before, after);
  for (int i = 0; i < 1000; ++i) restored.add(norm.apply(rounded[static_cast<std::size_t>(i)]), 1 + i % 3);
  CHECK(restored.mean() == Approx(before.mean()));
  CHECK(restored.deviation() == Approx(before.deviation()));
  CHECK_FALSE(norm.is_identity());
}

TEST_CASE("Q-Norm of values that all round to one level is the identity", "[quantize]") {
  moments before, after;
  before.add(0.1, 1);
  before.add(0.3, 1);
  after.add(0.2, 2);
  CHECK(fit_q_norm(before, after).is_identity());
  for (int i = 0; i < 10000; ++i) after.add(0.2, 0.1 * i);  // sums that round
  CHECK(after.deviation() == 0);
  CHECK(fit_q_norm(before, after).is_identity());
}
