#include "test/contract/error_bands.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>

#include "test/contract/answer.hpp"
#include "test/contract/attention_contract.hpp"
#include "test/contract/problems.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::contract;

void make_normal(float_matrix& x, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (float& value : x.values) value = normal(random);
}

/// One sink, whole pages, no tail: all but one token is quantized.
problem normal_problem(std::uint64_t seed) {
  auto it = make_problem({.shape = make_shape(4, 2, 64), .outliers_k = 0.02, .outliers_v = 0.02}, 1 + 8 * page_tokens);
  make_normal(it.k.front(), seed);
  make_normal(it.v.front(), seed + 1);
  return it;
}

double error_of_quantization(candidate const& with, std::uint64_t seed) {
  auto const what = normal_problem(seed);
  auto const held = with.make(what, what.tokens());
  filled const tokens(what, *held);
  auto const q = make_queries(what, 8, seed + 2);
  auto const exact =
      tokens.expected_over(reference::to_matrix(what.k.front()), reference::to_matrix(what.v.front()), q);
  return (reference::to_matrix(tokens.attend(q).out) - exact.out).norm() / exact.out.norm();
}

}  // namespace

TEST_CASE("what quantization costs lies in the band of its format", "[contract]") {
  std::uint64_t const seed = GENERATE(as<std::uint64_t>(), 1, 11, 21);
  for (candidate const& with : under_test().candidates) {
    CAPTURE(with.spec, seed);
    double const error = error_of_quantization(with, seed), band = error_band_of(with.spec);
    CHECK(error < std::hypot(band, under_test().bounds.out));
    CHECK(error > 0.7 * band);  // a looser band would hold for a format that has lost half a bit
  }
}
