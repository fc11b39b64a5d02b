#include "kvquant/format/int8_grid.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

using namespace kvquant;

namespace {

std::vector<float> random_levels(std::size_t count, float low, float high, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> levels(count);
  for (float& level : levels) level = uniform(random);
  std::sort(levels.begin(), levels.end());
  return levels;
}

/// Snapped levels are all on their grid, which gives back the multiples that they were snapped to.
void check_recovered(std::vector<float> const& levels, int limit) {
  CAPTURE(levels, limit);
  int8_grid const chosen = int8_grid_of(levels, limit);
  std::vector<float> snapped = levels;
  snap_to_int8_grid(snapped, limit);
  int8_grid const found = int8_grid_of(snapped, limit);
  CHECK(found.holds_all);
  CHECK(found.multiples == chosen.multiples);
  CHECK(std::is_sorted(snapped.begin(), snapped.end()));
  std::vector<float> again = snapped;
  snap_to_int8_grid(again, limit);
  CHECK(int8_grid_of(again, limit).multiples == chosen.multiples);
  for (std::size_t i = 0; i < levels.size(); ++i) {
    CHECK(std::abs(chosen.multiples[i]) <= limit);
    CHECK(std::abs(snapped[i] - levels[i]) <= 0.50001f * chosen.step);
  }
}

}  // namespace

TEST_CASE("the grid of levels by hand", "[format]") {
  int8_grid const it = int8_grid_of(std::vector{-0.5f, -0.25f, 0.126f, 1.0f}, 127);
  CHECK(it.step == 1.0f / 127);
  CHECK(it.multiples == std::vector<std::int8_t>{-64, -32, 16, 127});
  CHECK_FALSE(it.holds_all);
  CHECK(int8_grid_of(std::vector{-0.5f, -0.25f, 0.125f, 1.0f}, 64).holds_all);
  CHECK(int8_grid_of(std::vector{-63.0f, -62.0f, 0.0f, 63.0f}, 63).multiples ==
        std::vector<std::int8_t>{-63, -62, 0, 63});
}

TEST_CASE("the multiples that levels were snapped to are read back from them", "[format]") {
  for (int const limit : {key_grid_limit, value_grid_limit})
    for (std::uint64_t seed = 0; seed < 200; ++seed)
      for (std::size_t const count : {4u, 8u, 16u}) {
        check_recovered(random_levels(count, -1, 1, seed), limit);
        check_recovered(random_levels(count, 0.3f, 0.31f, seed), limit);
        check_recovered(random_levels(count, -1.2f, -0.01f, seed), limit);
        check_recovered(random_levels(count, -1e-30f, 1e30f, seed), limit);
        check_recovered(random_levels(count, -1e-37f, 2e-37f, seed), limit);
      }
}

TEST_CASE("levels of zero, of one value and of none are on the grid", "[format]") {
  for (float const level : {0.0f, -0.0f, 0.7f, -3.0f, 1e30f}) {
    std::vector<float> const levels(8, level);
    CHECK(int8_grid_of(levels, 63).holds_all);
    CHECK(int8_grid_of(levels, 63).multiples == std::vector<std::int8_t>(8, level > 0 ? 63 : level < 0 ? -63 : 0));
    check_recovered(levels, 63);
  }
  CHECK(int8_grid_of({}, 127).holds_all);
}

TEST_CASE("levels too small for a step of their own are not on the grid, and no multiple exceeds the limit",
          "[format]") {
  float const least = std::numeric_limits<float>::denorm_min();
  for (int const ulps : {1, 40, 90, 189, 1000}) {
    std::vector<float> levels = {-static_cast<float>(ulps) * least, 0, static_cast<float>(ulps) * least};
    for (std::int8_t const multiple : int8_grid_of(levels, 127).multiples) CHECK(std::abs(multiple) <= 127);
    snap_to_int8_grid(levels, 127);
    CHECK(int8_grid_of(levels, 127).holds_all);
  }
  CHECK_FALSE(int8_grid_of(std::vector{0.0f, least}, 127).holds_all);
}

TEST_CASE("a level that is a millionth off its place is not on the grid", "[format]") {
  std::vector<float> levels = {-0.5f, 0.25f, 1.0f};
  snap_to_int8_grid(levels, 63);
  levels[1] += 1e-6f;
  CHECK_FALSE(int8_grid_of(levels, 63).holds_all);
}
