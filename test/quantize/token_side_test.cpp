#include "kvquant/quantize/sides.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <set>

#include "test/support/coded.hpp"
#include "test/support/random_matrix.hpp"

using namespace kvquant;
using namespace kvquant::test;

TEMPLATE_LIST_TEST_CASE("values agree with the reference", "[quantize]", coded_formats) {
  using F = TestType;
  std::size_t const channels = GENERATE(as<std::size_t>(), 3, 64, 80, 192, 1024);
  double const fraction = GENERATE(0.0, 0.01, 0.05);
  auto const v = random_keys(9, channels, 23 + channels);
  auto const table = random_table<F>(6);
  value_side<F> const side(channels, table, fraction);
  auto const expected = reference::quantize_values(reference::to_matrix(v), fraction, levels_of<F>(table));

  rank_selector selector = side.make_selector();
  std::vector<typename F::code_type> codes(channels);
  std::size_t outliers = 0;
  for (std::size_t t = 0; t < v.rows; ++t) {
    auto const row = static_cast<int>(t);
    std::set<std::size_t> found;
    value_range const range =
        side.quantize(v.view().row(t), codes, selector, [&](outlier it) { found.insert(it.index); });
    affine const map = affine_of(range);
    CHECK(map.scale == expected.scale(row, 0));
    CHECK(map.zero == expected.zero(row, 0));
    for (std::size_t c = 0; c < channels; ++c)
      check_code<F>(table, codes[c], expected.codes(row, static_cast<int>(c)),
                    (static_cast<double>(v.view()(t, c)) - map.zero) / map.scale);
    outliers += found.size();
    for (auto const& it : expected.outliers)
      if (it.token == row) CHECK(found.count(static_cast<std::size_t>(it.channel)) == 1);
  }
  CHECK(outliers == expected.outliers.size());
  CHECK(outliers == v.rows * 2 * outliers_per_side(fraction, channels));
}

TEST_CASE("ties are broken by channel, so that every token sets aside the same number", "[quantize]") {
  std::size_t const channels = 8;
  rank_selector selector(channels, 0.5);  // two at each end
  std::vector<float> const equal(channels, 3.0f);
  value_range const range = selector.select(equal);
  CHECK(range.low() == 3.0f);
  CHECK(range.high() == 3.0f);
  CHECK(std::vector(selector.smallest().begin(), selector.smallest().end()) == std::vector<std::uint16_t>{0, 1});
  CHECK(std::vector(selector.largest().begin(), selector.largest().end()) == std::vector<std::uint16_t>{6, 7});

  std::vector<float> const some = {5, 1, 5, 1, 2, 5, 1, 3};
  selector.select(some);
  CHECK(std::vector(selector.smallest().begin(), selector.smallest().end()) == std::vector<std::uint16_t>{1, 3});
  CHECK(std::vector(selector.largest().begin(), selector.largest().end()) == std::vector<std::uint16_t>{2, 5});
}

TEST_CASE("a token of one value is exact", "[quantize]") {
  value_side<nuq<3>> const side(4, random_table<nuq<3>>(9), 0.0);
  rank_selector selector = side.make_selector();
  std::vector<nuq<3>::code_type> codes(4);
  value_range const range = side.quantize(std::vector<float>(4, -1.5f), codes, selector, [](outlier) {});
  for (auto const code : codes) CHECK(side.decode(affine_of(range), code) == -1.5f);
}

TEST_CASE("values refuse shapes that cannot be", "[quantize]") {
  CHECK_THROWS_AS(rank_selector(0, 0.01), error);
  CHECK_THROWS_AS(rank_selector(70000, 0.01), error);
  CHECK_THROWS_AS(rank_selector(4, 0.9), error);
  CHECK_THROWS_AS(rank_selector(4, 0).select(std::vector<float>(5)), error);
}

TEST_CASE("values refuse tokens of another width and values that are no numbers, and write nothing", "[quantize]") {
  value_side<nuq<3>> const side(3, random_table<nuq<3>>(9), 0.0);
  rank_selector selector = side.make_selector();
  std::vector<nuq<3>::code_type> codes(3, 99);
  auto const quantize = [&](std::vector<float> const& token) { side.quantize(token, codes, selector, [](outlier) {}); };
  CHECK_THROWS_WITH(quantize({1, 2}), Catch::Contains("a token of 2 channels"));
  CHECK_THROWS_WITH(quantize({1, 1e9f, 2}), Catch::Contains("values: channel 1"));
  CHECK(codes == std::vector<nuq<3>::code_type>(3, 99));
}
