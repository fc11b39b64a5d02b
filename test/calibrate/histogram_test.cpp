#include "kvquant/calibrate/histogram.hpp"

#include <catch2/catch.hpp>
#include <random>
#include <vector>

using namespace kvquant;

TEST_CASE("a bin begins at its lower edge and the next one at its upper", "[calibrate]") {
  for (std::size_t const bins : {1u, 2u, 8u, 512u, 4096u}) {
    histogram const h(bins);
    for (std::size_t bin = 0; bin < bins; ++bin) {
      float const width = 2.0f / static_cast<float>(bins);  // a power of two: edges are exact
      float const edge = -1.0f + static_cast<float>(bin) * width;
      CHECK(h.bin_of(edge) == bin);
      CHECK(h.bin_of(edge + 0.75f * width) == bin);
    }
  }
}

TEST_CASE("a number of bins that is no power of two divides [-1, 1] evenly too", "[calibrate]") {
  histogram const h(3);
  CHECK(h.bin_of(-0.34f) == 0);
  CHECK(h.bin_of(-0.33f) == 1);
  CHECK(h.bin_of(0.33f) == 1);
  CHECK(h.bin_of(0.34f) == 2);
}

TEST_CASE("bins never fall with rising values, in the finest histogram either", "[calibrate]") {
  histogram const h(histogram::most_bins);
  std::size_t before = 0;
  for (int i = -1100; i <= 1100; ++i) {
    std::size_t const bin = h.bin_of(static_cast<float>(i) / 1000);
    CHECK(bin >= before);
    CHECK(bin < histogram::most_bins);
    before = bin;
  }
  CHECK(before == histogram::most_bins - 1);
}

TEST_CASE("the total is that of all values, those beyond the range included", "[calibrate]") {
  histogram h(16);
  h.add(-1.5f, 2);
  h.add(0.25f, 4);
  h.add(1.25f, 8);
  moments const total = h.total();
  CHECK(total.mass == 14);
  CHECK(total.first == -3 + 1 + 10);
  CHECK(total.second == 4.5 + 0.25 + 12.5);
  CHECK(h.bins().front().mean() == -1.5);
  CHECK(h.bins().back().mean() == 1.25);
  CHECK(histogram(16).total().mass == 0);
}

TEST_CASE("the error of levels that cut through no bin is that of the values themselves", "[calibrate]") {
  std::mt19937_64 random(11);
  std::uniform_real_distribution<float> uniform(-1, 1);
  histogram h(64);
  double expected = 0;
  for (int i = 0; i < 5000; ++i) {
    float const x = uniform(random);
    double const weight = 1e-9 * static_cast<double>(1 + random() % 1000), level = x < 0 ? -0.4 : 0.7;
    h.add(x, weight);
    expected += weight * (x - level) * (x - level);
  }
  double found = 0;
  for (std::size_t bin = 0; bin < 64; ++bin) found += h.bins()[bin].squared_error(bin < 32 ? -0.4 : 0.7);
  CHECK(found == Approx(expected).epsilon(1e-12));
}

TEST_CASE("histograms of other sizes do not add, and sizes have limits", "[calibrate]") {
  histogram h(32), other(33);
  h.add(0.5f, 3);
  CHECK_THROWS_WITH(h += other, Catch::Contains("merging 33 bins into 32"));
  CHECK(h.total().mass == 3);
  CHECK_THROWS_WITH(histogram(histogram::most_bins + 1), Catch::Contains("1048577 bins, expected 1 to 1048576"));
}
