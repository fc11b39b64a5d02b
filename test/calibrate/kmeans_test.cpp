#include "kvquant/calibrate/kmeans.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "kvquant/calibrate/histogram.hpp"

using namespace kvquant;

namespace {

/// Every way to cut the bins into runs, tried.
double brute_force(std::vector<moments> const& bins, std::size_t clusters) {
  std::function<double(std::size_t, std::size_t)> const best = [&](std::size_t begin, std::size_t left) -> double {
    if (begin == bins.size()) return 0;
    if (left == 0) return std::numeric_limits<double>::infinity();
    double least = std::numeric_limits<double>::infinity();
    moments run;
    for (std::size_t end = begin + 1; end <= bins.size(); ++end) {
      run += bins[end - 1];
      least = std::min(least, run.squared_error(run.mean()) + best(end, left - 1));
    }
    return least;
  };
  return best(0, clusters);
}

std::vector<moments> random_bins(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform;
  std::vector<double> at(count);
  for (double& x : at) x = 2 * uniform(random) - 1;
  std::sort(at.begin(), at.end());
  std::vector<moments> bins(count);
  for (std::size_t i = 0; i < count; ++i) bins[i].add(at[i], std::exp(6 * uniform(random)));
  return bins;
}

double error_of(std::vector<moments> const& bins, std::vector<double> const& centroids) {
  double sum = 0;
  for (moments const& bin : bins) {
    double least = std::numeric_limits<double>::infinity();
    for (double const c : centroids) least = std::min(least, bin.squared_error(c));
    sum += least;
  }
  return sum;
}

}  // namespace

TEST_CASE("dynamic programming finds what brute force finds", "[calibrate]") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    auto const bins = random_bins(1 + seed % 11, seed);
    for (std::size_t clusters = 1; clusters <= 5; ++clusters) {
      auto const found = exact_kmeans(bins, clusters);
      double const expected = brute_force(bins, clusters);
      CHECK(found.objective == Approx(expected).epsilon(1e-9).margin(1e-9));
      CHECK(error_of(bins, found.centroids) == Approx(expected).epsilon(1e-9).margin(1e-9));
      CHECK(found.centroids.size() == clusters);
      CHECK(std::is_sorted(found.centroids.begin(), found.centroids.end()));
    }
  }
}

TEST_CASE("more levels never make a codebook worse", "[calibrate]") {
  auto const bins = random_bins(3000, 99);
  double before = std::numeric_limits<double>::infinity();
  for (std::size_t clusters : {1u, 2u, 3u, 4u, 8u, 16u, 64u, 256u}) {
    auto const found = exact_kmeans(bins, clusters);
    CHECK(found.objective < before);
    CHECK(error_of(bins, found.centroids) == Approx(found.objective).epsilon(1e-9));
    before = found.objective;
  }
}

TEST_CASE("no single move of a centroid or a boundary improves on the optimum", "[calibrate]") {
  auto const bins = random_bins(500, 3);
  auto const found = exact_kmeans(bins, 8);
  for (std::size_t i = 0; i < 8; ++i)
    for (double const step : {-1e-3, 1e-3}) {
      auto moved = found.centroids;
      moved[i] += step;
      CHECK(error_of(bins, moved) >= found.objective);
    }
}

TEST_CASE("empty bins and scarce values", "[calibrate]") {
  std::vector<moments> bins(10);
  bins[3].add(-0.5, 2.0);
  bins[7].add(0.25, 1.0);
  auto const found = exact_kmeans(bins, 4);
  CHECK(found.objective == Approx(0).margin(1e-12));
  CHECK(found.centroids == std::vector<double>{-0.5, 0.25, 0.25, 0.25});
  CHECK_THROWS_AS(exact_kmeans(std::vector<moments>(5), 2), error);
  CHECK_THROWS_AS(exact_kmeans(bins, 0), error);
  for (moments const impossible : {moments{-1, 0, 0}, moments{std::nan(""), 0, 0}, moments{1, INFINITY, 0}}) {
    bins[4] = impossible;
    CHECK_THROWS_WITH(exact_kmeans(bins, 4), Catch::Contains("bin 4"));
  }
}

TEST_CASE("histograms merge associatively and keep exact moments", "[calibrate]") {
  std::mt19937_64 random(5);
  std::uniform_real_distribution<float> uniform(-1.01f, 1.01f);
  std::array<histogram, 3> parts = {histogram(64), histogram(64), histogram(64)};
  histogram whole(64);
  for (int i = 0; i < 3000; ++i) {
    float const x = uniform(random);
    auto const weight = static_cast<double>(1 + random() % 4);  // small integers, so that sums are exact in any order
    float const stored = std::round(x * 256) / 256;
    parts[random() % 3].add(stored, weight);
    whole.add(stored, weight);
  }
  histogram left = parts[0], right = parts[1];
  (left += parts[1]) += parts[2];
  right += parts[2];
  right += parts[0];
  for (std::size_t bin = 0; bin < 64; ++bin)
    for (auto member : {&moments::mass, &moments::first, &moments::second}) {
      CHECK(left.bins()[bin].*member == whole.bins()[bin].*member);
      CHECK(right.bins()[bin].*member == whole.bins()[bin].*member);
    }
  histogram other(32);
  CHECK_THROWS_AS(other += whole, error);
}

TEST_CASE("bins cover [-1, 1], and the ends take what lies beyond", "[calibrate]") {
  histogram const h(4096);
  CHECK(h.bin_of(-1.0f) == 0);
  CHECK(h.bin_of(-7.0f) == 0);
  CHECK(h.bin_of(1.0f) == 4095);
  CHECK(h.bin_of(7.0f) == 4095);
  CHECK(h.bin_of(0.0f) == 2048);
  CHECK_THROWS_AS(histogram(0), error);
}
