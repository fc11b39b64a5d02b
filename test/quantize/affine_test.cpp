#include "kvquant/quantize/affine.hpp"

#include <catch2/catch.hpp>
#include <limits>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/quantize/outlier.hpp"

using namespace kvquant;

TEST_CASE("a range maps onto [-1, 1] and back", "[quantize]") {
  affine const map = affine_of(make_range(-3.0f, 5.0f));
  CHECK(map.scale == 4.0f);
  CHECK(map.zero == 1.0f);
  CHECK(map.normalise(-3.0f) == -1.0f);
  CHECK(map.normalise(5.0f) == 1.0f);
  CHECK(map.restore(0.0f) == 1.0f);
}

TEST_CASE("bounds are rounded to binary16 before scale and zero are derived", "[quantize]") {
  float const low = 0.1f, high = 0.3f;  // neither is a binary16 number
  affine const map = affine_of(make_range(low, high));
  CHECK(map.scale == (round_to_half(high) - round_to_half(low)) / 2);
  CHECK(map.zero == (round_to_half(high) + round_to_half(low)) / 2);
}

TEST_CASE("a range of one value decodes to that value, whatever the code", "[quantize]") {
  for (float const x : {0.0f, 7.5f, -65504.0f}) {
    affine const map = affine_of(make_range(x, x));
    CHECK(map.scale == std::numeric_limits<float>::min());
    for (float const level : {-1.0f, 0.25f, 1.0f}) CHECK(map.restore(level) == (x == 0 ? level * map.scale : x));
  }
}

TEST_CASE("ranges stay finite", "[quantize]") {
  value_range const range = make_range(-1e30f, 1e30f);
  CHECK(range.low() == -65504.0f);
  CHECK(range.high() == 65504.0f);
  CHECK(affine_of(range).scale == 65504.0f);
}

TEST_CASE("an end of a range that is zero has no sign", "[quantize]") {
  for (float const x : {-0.0f, 0.0f, -1e-10f}) {
    CHECK(make_range(x, 1).lower == half{});
    CHECK(make_range(-1, x).upper == half{});
  }
}

TEST_CASE("a residual is what the dense code misses, and stays finite", "[quantize]") {
  CHECK(to_float(residual_of(3.0f, 1.0f)) == 2.0f);
  CHECK(to_float(residual_of(65504.0f, -65504.0f)) == 65504.0f);
  CHECK(to_float(residual_of(-65504.0f, 65504.0f)) == -65504.0f);
}

TEST_CASE("outliers per side are counted by rank", "[quantize]") {
  CHECK(outliers_per_side(0.01, 192) == 1);
  CHECK(outliers_per_side(0.01, 1024) == 5);
  CHECK(outliers_per_side(0.01, 4096) == 20);
  CHECK(outliers_per_side(0.0, 64) == 0);
  CHECK_THROWS_AS(outliers_per_side(0.999, 64), error);
  CHECK_THROWS_AS(outliers_per_side(-0.1, 64), error);
  CHECK_THROWS_AS(outliers_per_side(std::numeric_limits<double>::quiet_NaN(), 64), error);
}

TEST_CASE("what binary16 cannot hold is refused by name", "[quantize]") {
  std::vector<float> token = {0, 1, 2, 65504.0f, -3, 4};
  CHECK_NOTHROW(require_storable(token, 6, 6, "keys"));
  CHECK_THROWS_WITH(require_storable(token, 6, 7, "keys"), Catch::Contains("keys: a token of 6 channels and 6 codes"));
  CHECK_THROWS_AS(require_storable(token, 5, 6, "keys"), error);
  for (float const bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -70000.0f}) {
    token[4] = bad;
    CHECK_THROWS_WITH(require_storable(token, 6, 6, "keys"), Catch::Contains("keys: channel 4"));
  }
}
