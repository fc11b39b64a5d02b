#include "kvquant/reference/quantize.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"
#include "test/support/coded.hpp"
#include "test/support/random_matrix.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;
using Catch::Contains;
using reference::matrix;
using reference::vector;

vector make_vector(std::vector<double> const& values) {
  return Eigen::Map<vector const>(values.data(), static_cast<Eigen::Index>(values.size()));
}

/// Two bits, with decode levels that differ from the encode levels. All are sums of few powers of two.
reference::levels uneven_levels() {
  return {make_vector({-1, -0.25, 0.25, 1}), make_vector({-0.875, -0.25, 0.3125, 1})};
}

/// `count` levels over [-1, 1] that read as they compare.
reference::levels plain_levels(int count) {
  auto const even = Eigen::VectorXd::LinSpaced(count, -1, 1);
  return {even, even};
}

matrix make_matrix(std::vector<std::vector<double>> const& rows) {
  matrix out(rows.size(), rows.front().size());
  for (Eigen::Index r = 0; r < out.rows(); ++r)
    for (Eigen::Index c = 0; c < out.cols(); ++c)
      out(r, c) = rows[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)];
  return out;
}

using places = std::set<std::pair<Eigen::Index, Eigen::Index>>;  // (token, channel)

places places_of(reference::coded_matrix const& coded) {
  places out;
  for (auto const& it : coded.outliers) out.emplace(it.token, it.channel);
  CHECK(out.size() == coded.outliers.size());
  return out;
}

/// An outlier comes back but for the rounding of its residual to binary16; what is left of a dense value is at most
/// half the widest gap. Ranges are rounded to binary16 as well, so that the ends of a token's middle may lie outside
/// it.
void check_errors(matrix const& x, reference::coded_matrix const& coded, double widest_gap) {
  places const outliers = places_of(coded);
  matrix const dense = coded.dense(), all = coded.reconstruct();
  for (Eigen::Index t = 0; t < x.rows(); ++t)
    for (Eigen::Index c = 0; c < x.cols(); ++c) {
      double const scale = coded.scale(coded.scale.rows() == 1 ? 0 : t, coded.scale.cols() == 1 ? 0 : c);
      double const single = std::ldexp(std::abs(x(t, c)) + std::abs(dense(t, c)), -24);
      double const allowed = outliers.count({t, c}) == 1
                                 ? std::ldexp(std::abs(x(t, c) - dense(t, c)), -11) + std::ldexp(1, -25) + single
                                 : scale * widest_gap / 2 + std::ldexp(std::abs(x(t, c)), -11) + single;
      CAPTURE(t, c, x(t, c), all(t, c), outliers.count({t, c}));
      REQUIRE(std::abs(x(t, c) - all(t, c)) <= allowed);
    }
}

}  // namespace

TEST_CASE("the nearest level wins, the lower one of two equally near", "[reference]") {
  auto const levels = uneven_levels();
  CHECK(levels.nearest(-1) == 0);
  CHECK(levels.nearest(-0.625) == 0);  // midway
  CHECK(levels.nearest(std::nextafter(-0.625, 0)) == 1);
  CHECK(levels.nearest(0) == 1);  // midway
  CHECK(levels.nearest(1e-15) == 2);
  CHECK(levels.nearest(0.625) == 2);  // midway
  CHECK(levels.nearest(0.63) == 3);
}

TEST_CASE("of equal levels the first is taken", "[reference]") {
  reference::levels const levels{make_vector({-1, 0.5, 0.5, 1}), make_vector({-1, 0.5, 0.5, 1})};
  CHECK(levels.nearest(0.4) == 1);
  CHECK(levels.nearest(0.6) == 1);
}

TEST_CASE("beyond the ends the end is nearest, however far", "[reference]") {
  auto const levels = uneven_levels();
  for (double const far : {1.5, 1e10, 1e20, 1e43, std::numeric_limits<double>::infinity()}) {
    CAPTURE(far);
    CHECK(levels.nearest(far) == 3);
    CHECK(levels.nearest(-far) == 0);
  }
}

TEST_CASE("keys by hand: a range per channel, residuals for what lies outside", "[reference]") {
  std::vector<value_range> const ranges{make_range(-2, 2), make_range(1, 5)};
  auto const k = make_matrix({{0.25, 1}, {-2, 6}, {7, 3}, {1.25, 0.5}});
  auto const coded = reference::quantize_keys(k, ranges, uneven_levels(), true);
  CHECK(coded.scale == make_matrix({{2, 2}}));
  CHECK(coded.zero == make_matrix({{0, 3}}));
  // x' by channel: 0.125 -1 3.5 0.625 and -1 1.5 0 -1.25
  CHECK(coded.codes == (Eigen::MatrixXi(4, 2) << 2, 0, 0, 3, 3, 1, 2, 0).finished());
  CHECK(coded.dense() == make_matrix({{0.625, 1.25}, {-1.75, 5}, {2, 2.5}, {0.625, 1.25}}));
  CHECK(places_of(coded) == places{{1, 1}, {2, 0}, {3, 1}});
  CHECK(coded.reconstruct() == make_matrix({{0.625, 1.25}, {-1.75, 6}, {7, 2.5}, {0.625, 0.5}}));
}

TEST_CASE("keys on the ends of their range are no outliers, and none are kept unless asked for", "[reference]") {
  std::vector<value_range> const ranges{make_range(-2, 2)};
  auto const k = make_matrix({{-2}, {2}, {std::nextafter(2.0, 3.0)}, {-2.5}});
  CHECK(places_of(reference::quantize_keys(k, ranges, uneven_levels(), true)) == places{{2, 0}, {3, 0}});
  auto const dense = reference::quantize_keys(k, ranges, uneven_levels(), false);
  CHECK(dense.outliers.empty());
  CHECK(dense.reconstruct() == dense.dense());
}

TEST_CASE("residuals are rounded to binary16 and stay finite", "[reference]") {
  std::vector<value_range> const ranges{make_range(-1, 1)};
  auto const k = make_matrix({{3.0004}, {1e6}, {-1e6}});
  auto const coded = reference::quantize_keys(k, ranges, uneven_levels(), true);
  REQUIRE(coded.outliers.size() == 3);
  CHECK(coded.outliers[0].residual == 2.0);  // 2.0004: the next number of binary16 is 2.00195
  CHECK(coded.outliers[1].residual == 65504.0);
  CHECK(coded.outliers[2].residual == -65504.0);
}

TEST_CASE("a channel of one value is exact, and takes outliers on both sides", "[reference]") {
  std::vector<value_range> const ranges{make_range(2.5f, 2.5f)};
  auto const k = make_matrix({{2.5}, {100}, {-100}});
  auto const coded = reference::quantize_keys(k, ranges, uneven_levels(), true);
  CHECK(coded.codes(1, 0) == 3);
  CHECK(coded.codes(2, 0) == 0);
  matrix const read = coded.reconstruct();
  for (Eigen::Index t = 0; t < 3; ++t) CHECK(read(t, 0) == Approx(k(t, 0)).epsilon(1e-15));
}

TEST_CASE("values by hand: ranks choose a token's outliers, the next ones its range", "[reference]") {
  // 0.5 of 8 channels: two at each end.
  auto const v = make_matrix({{9, 1, -2, 0.5, 5, -7, 3, 1}, {5, 1, 5, 1, 2, 5, 1, 3}});
  auto const coded = reference::quantize_values(v, 0.5, uneven_levels());
  // Token 0 sorted: -7 -2 | 0.5 1 1 3 | 5 9. Token 1: 1 1 | 1 2 3 5 | 5 5, ties by channel.
  CHECK(coded.scale == make_matrix({{1.25}, {2}}));
  CHECK(coded.zero == make_matrix({{1.75}, {3}}));
  CHECK(places_of(coded) == places{{0, 0}, {0, 2}, {0, 4}, {0, 5}, {1, 1}, {1, 2}, {1, 3}, {1, 5}});
  CHECK(std::is_sorted(coded.outliers.begin(), coded.outliers.end(), [](auto const& a, auto const& b) {
    return std::pair(a.token, a.channel) < std::pair(b.token, b.channel);
  }));
  CHECK(coded.codes.row(0) == (Eigen::RowVectorXi(8) << 3, 1, 0, 0, 3, 0, 3, 1).finished());
  CHECK(coded.codes.row(1) == (Eigen::RowVectorXi(8) << 3, 0, 3, 0, 1, 3, 0, 1).finished());
  matrix const dense = coded.dense(), read = coded.reconstruct();
  CHECK(dense(0, 3) == 1.25 * -0.875 + 1.75);
  CHECK(dense(1, 7) == 2 * -0.25 + 3);
  for (auto const& [t, c] : places_of(coded)) CHECK(read(t, c) == Approx(v(t, c)).epsilon(1e-3));
  CHECK(read(1, 0) == dense(1, 0));
}

TEST_CASE("ties are broken by channel in tokens of any length", "[reference]") {
  auto const coded = reference::quantize_values(matrix::Constant(1, 200, 3.0), 0.02, uneven_levels());
  CHECK(places_of(coded) == places{{0, 0}, {0, 1}, {0, 198}, {0, 199}});
}

TEST_CASE("without outliers a token's range is its smallest and largest value", "[reference]") {
  auto const v = make_matrix({{4, -2, 1}, {-1.5, -1.5, -1.5}});
  auto const coded = reference::quantize_values(v, 0, plain_levels(4));
  CHECK(coded.outliers.empty());
  CHECK(coded.scale(0, 0) == 3);
  CHECK(coded.zero(0, 0) == 1);
  CHECK(coded.reconstruct()(0, 0) == 4);
  CHECK(coded.reconstruct()(0, 1) == -2);
  CHECK(coded.reconstruct().row(1) == v.row(1));
}

TEST_CASE("what keys lose is at most half a gap, outliers no more than binary16 does", "[reference]") {
  int const levels = GENERATE(4, 8, 16);
  Eigen::Index const channels = GENERATE(1, 3, 64);
  auto const x = random_keys(200, static_cast<std::size_t>(channels), 31);
  auto const k = reference::to_matrix(x);
  auto const coded = reference::quantize_keys(k, middle_ranges(x), plain_levels(levels), true);
  CHECK(coded.outliers.size() > 0);
  check_errors(k, coded, 2.0 / (levels - 1));
}

TEST_CASE("what values lose is at most half a gap, outliers no more than binary16 does", "[reference]") {
  int const levels = GENERATE(4, 8, 16);
  std::size_t const channels = GENERATE(as<std::size_t>(), 3u, 64u, 192u);
  auto const v = reference::to_matrix(random_keys(50, channels, 32));
  auto const coded = reference::quantize_values(v, 0.05, plain_levels(levels));
  CHECK(coded.outliers.size() == 50 * 2 * static_cast<std::size_t>(std::lround(0.025 * static_cast<double>(channels))));
  check_errors(v, coded, 2.0 / (levels - 1));
}

TEST_CASE("sinks read as binary16 keeps them, the rest as coded", "[reference]") {
  auto const x = random_keys(5, 8, 33);
  auto const v = reference::to_matrix(x);
  auto const coded = reference::quantize_values(v, 0.1, plain_levels(4));
  for (int const sinks : {-1, 0, 1, 3, 5, 9}) {
    matrix const read = reference::with_sinks(v, coded, sinks), rest = coded.reconstruct();
    for (Eigen::Index t = 0; t < 5; ++t)
      for (Eigen::Index c = 0; c < 8; ++c)
        CHECK(read(t, c) == (t < sinks ? static_cast<double>(round_to_half(static_cast<float>(v(t, c)))) : rest(t, c)));
  }
}

TEST_CASE("the reference refuses shapes that do not fit", "[reference]") {
  matrix const x = matrix::Ones(3, 4);
  std::vector<value_range> const ranges(3, make_range(-1, 1));
  CHECK_THROWS_WITH(reference::quantize_keys(x, ranges, uneven_levels(), true), Contains("4 channels, ranges of 3"));
  CHECK_THROWS_AS(reference::quantize_values(matrix(3, 0), 0, uneven_levels()), error);
  CHECK_THROWS_WITH(reference::quantize_values(x, 1.5, uneven_levels()), Contains("outlier fraction: 1.5"));
  auto const coded = reference::quantize_values(x, 0, uneven_levels());
  CHECK_THROWS_WITH(reference::with_sinks(matrix::Ones(5, 4), coded, 5), Contains("exact 5 x 4, codes 3 x 4"));
  CHECK_THROWS_WITH(reference::with_sinks(matrix::Ones(3, 5), coded, 0), Contains("exact 3 x 5, codes 3 x 4"));
}
