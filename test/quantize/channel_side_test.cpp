#include "kvquant/quantize/sides.hpp"

#include <catch2/catch.hpp>
#include <cmath>

#include "kvquant/format/formats.hpp"
#include "kvquant/reference/quantize.hpp"
#include "test/support/coded.hpp"
#include "test/support/random_matrix.hpp"

using namespace kvquant;
using namespace kvquant::test;

TEMPLATE_LIST_TEST_CASE("keys agree with the reference", "[quantize]", coded_formats) {
  using F = TestType;
  std::size_t const channels = GENERATE(as<std::size_t>(), 1, 3, 64, 80, 192);
  bool const keep_outliers = GENERATE(false, true);
  auto const k = random_keys(65, channels, 11 + channels);
  auto const ranges = middle_ranges(k);
  auto const table = random_table<F>(5);
  key_side<F> const side(ranges, table, keep_outliers);
  auto const expected = reference::quantize_keys(reference::to_matrix(k), ranges, levels_of<F>(table), keep_outliers);
  auto const reconstructed = expected.reconstruct();

  std::vector<typename F::code_type> codes(channels);
  std::size_t outliers = 0;
  for (std::size_t t = 0; t < k.rows; ++t) {
    std::vector<double> row(channels);
    std::vector<outlier> found;
    side.quantize(k.view().row(t), codes, [&](outlier it) { found.push_back(it); });
    for (std::size_t c = 0; c < channels; ++c) {
      row[c] = side.decode(c, codes[c]);
      affine const map = side.map(c);
      check_code<F>(table, codes[c], expected.codes(static_cast<int>(t), static_cast<int>(c)),
                    (static_cast<double>(k.view()(t, c)) - map.zero) / map.scale);
    }
    for (outlier const it : found) row[it.index] += to_float(it.residual);
    for (std::size_t c = 0; c < channels; ++c) {
      double const x = reconstructed(static_cast<int>(t), static_cast<int>(c));
      if (codes[c] == expected.codes(static_cast<int>(t), static_cast<int>(c)))
        CHECK(row[c] == Approx(x).epsilon(1e-3).margin(1e-4 * side.map(c).scale));
    }
    outliers += found.size();
  }
  CHECK(outliers == expected.outliers.size());
  if (keep_outliers && channels >= 64) CHECK(outliers > 0);
}

TEST_CASE("with its residual an outlier reads as binary16 would store what is missing", "[quantize]") {
  auto const table = nuq<2>::make_table(std::vector<float>{-1, -0.5f, 0.5f, 1}, std::vector<float>{-1, -0.5f, 0.5f, 1});
  std::vector<value_range> const ranges = {make_range(-1, 1), make_range(-1, 1)};
  key_side<nuq<2>> const side(ranges, table, true);
  std::vector<nuq<2>::code_type> codes(2);
  std::vector<outlier> found;
  side.quantize(std::vector<float>{0.4f, 100.0f}, codes, [&](outlier it) { found.push_back(it); });
  REQUIRE(found.size() == 1);
  CHECK(found[0].index == 1);
  CHECK(side.decode(1, codes[1]) == 1.0f);
  CHECK(to_float(found[0].residual) == 99.0f);
}

TEST_CASE("a channel of one value is exact", "[quantize]") {
  auto const table = random_table<nuq<3>>(3);
  std::vector<value_range> const ranges = {make_range(2.5f, 2.5f)};
  key_side<nuq<3>> const side(ranges, table, true);
  CHECK(side.decode(0, side.encode(0, 2.5f)) == 2.5f);
  CHECK_FALSE(side.is_outlier(0, 2.5f));
}

TEST_CASE("keys refuse ranges that cannot be", "[quantize]") {
  auto const table = random_table<nuq<3>>(3);
  CHECK_THROWS_AS(key_side<nuq<3>>({}, table, true), error);
  std::vector<value_range> const reversed = {make_range(0, 1), make_range(1, -1)};
  CHECK_THROWS_WITH(key_side<nuq<3>>(reversed, table, true), Catch::Contains("channel 1"));
}

TEST_CASE("keys refuse tokens of another width and values that are no numbers, and write nothing", "[quantize]") {
  std::vector<value_range> const ranges(3, make_range(-1, 1));
  key_side<nuq<3>> const side(ranges, random_table<nuq<3>>(3), true);
  std::vector<nuq<3>::code_type> codes(3, 99);
  auto const ignore = [](outlier) {};
  CHECK_THROWS_WITH(side.quantize(std::vector<float>(2), codes, ignore), Catch::Contains("a token of 2 channels"));
  CHECK_THROWS_WITH(side.quantize(std::vector<float>{0, 1, std::nanf("")}, codes, ignore),
                    Catch::Contains("keys: channel 2"));
  CHECK(codes == std::vector<nuq<3>::code_type>(3, 99));
}
