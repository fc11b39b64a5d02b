#include "kvquant/calibrate/allocate.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

using namespace kvquant;

namespace {

double loss_of(std::vector<width_losses> const& losses, std::vector<std::uint8_t> const& bits) {
  double sum = 0;
  for (std::size_t unit = 0; unit < bits.size(); ++unit) sum += losses[unit][bits[unit] - 1u];
  return sum;
}

bool is_admissible(std::vector<std::uint8_t> const& bits, std::size_t quantum, std::size_t total) {
  if (std::accumulate(bits.begin(), bits.end(), std::size_t{0}) != total) return false;
  for (std::uint8_t width = 1; width <= most_channel_bits; ++width)
    if (static_cast<std::size_t>(std::count(bits.begin(), bits.end(), width)) % quantum != 0) return false;
  return std::all_of(bits.begin(), bits.end(), [](std::uint8_t b) { return b >= 1 && b <= most_channel_bits; });
}

/// Of all choices.
double least_loss(std::vector<width_losses> const& losses, std::size_t quantum, std::size_t total) {
  double least = std::numeric_limits<double>::infinity();
  std::vector<std::uint8_t> bits(losses.size(), 1);
  for (;;) {
    if (is_admissible(bits, quantum, total)) least = std::min(least, loss_of(losses, bits));
    std::size_t unit = 0;
    while (unit < bits.size() && bits[unit] == most_channel_bits) bits[unit++] = 1;
    if (unit == bits.size()) return least;
    ++bits[unit];
  }
}

/// What rounding loses falls by about 4 with each bit; `roughness` moves it.
std::vector<width_losses> random_losses(std::size_t units, double roughness, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<width_losses> losses(units);
  for (auto& unit : losses) {
    double const scale = std::exp(2 * normal(random));
    for (std::size_t i = 0; i < unit.size(); ++i)
      unit[i] = scale * std::pow(4.0, -static_cast<double>(i)) * std::exp(roughness * normal(random));
  }
  return losses;
}

}  // namespace

TEST_CASE("no choice of widths loses less", "[calibrate]") {
  double const roughness = GENERATE(0.0, 0.3, 2.0);
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    auto const losses = random_losses(8, roughness, seed);
    for (std::size_t const quantum : {1u, 2u, 4u})
      for (std::size_t total = 8; total <= 32; total += quantum) {
        CAPTURE(roughness, seed, quantum, total);
        auto const bits = allocate_widths(losses, quantum, total);
        REQUIRE(is_admissible(bits, quantum, total));
        CHECK(loss_of(losses, bits) == Approx(least_loss(losses, quantum, total)).epsilon(1e-9));
      }
  }
}

TEST_CASE("whole heads are cut exactly to their bits, and channels that lose more are no narrower", "[calibrate]") {
  std::size_t const channels = GENERATE(as<std::size_t>(), 64, 80, 128, 256);
  auto const losses = random_losses(channels, 0, 5);
  for (std::size_t total = channels; total <= 4 * channels; total += 40) {
    std::size_t const bits = total / 8 * 8;
    auto const widths = allocate_widths(losses, 8, bits);
    REQUIRE(is_admissible(widths, 8, bits));
    for (std::size_t a = 0; a < channels; ++a)
      for (std::size_t b = 0; b < channels; ++b)
        if (losses[a][0] > losses[b][0] * (1 + 1e-9)) REQUIRE(widths[a] >= widths[b]);
  }
}

TEST_CASE("channels without loss, and all alike, are no obstacle", "[calibrate]") {
  for (double const same : {0.0, 1.0}) {
    std::vector<width_losses> const losses(16, width_losses{same, same, same, same});
    CHECK(is_admissible(allocate_widths(losses, 8, 40), 8, 40));
    CHECK(allocate_widths(losses, 8, 40) == allocate_widths(losses, 8, 40));
  }
}

TEST_CASE("bits that no choice of widths has are refused", "[calibrate]") {
  std::vector<width_losses> const losses(16, width_losses{4, 3, 2, 1});
  CHECK_THROWS_WITH(allocate_widths(losses, 8, 8), Catch::Contains("a multiple of 8 from 16 to 64"));
  CHECK_THROWS_AS(allocate_widths(losses, 8, 72), error);
  CHECK_THROWS_AS(allocate_widths(losses, 8, 41), error);
  CHECK_THROWS_AS(allocate_widths(losses, 5, 40), error);
  CHECK_THROWS_AS(allocate_widths(losses, 0, 40), error);
  CHECK_THROWS_AS(allocate_widths({}, 8, 0), error);
}
