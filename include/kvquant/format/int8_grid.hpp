#pragma once
/// \file
/// Levels that are whole multiples of one step, so that integer kernels read a codebook exactly.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace kvquant {

/// The largest multiple on either side of 0: keys are read as 7-bit numbers around 64, values as 8-bit ones.
inline constexpr int key_grid_limit = 63, value_grid_limit = 127;

/// level i ≈ step · multiples[i].
struct int8_grid {
  float step = 0;                      ///< the largest |level| / limit; 0 if all levels are
  std::vector<std::int8_t> multiples;  ///< [levels], −limit to limit
  bool holds_all = true;               ///< whether every level is on the grid, as far as single precision can tell

  /// What code `i` reads as.
  float level(std::size_t i) const { return step * static_cast<float>(multiples[i]); }
};

/// The grid of finite levels. Of levels that were snapped to a grid of the same limit, exactly the same multiples.
inline int8_grid int8_grid_of(std::span<float const> levels, int limit) {
  float largest = 0;
  for (float const level : levels) largest = std::max(largest, std::fabs(level));
  int8_grid it{.step = largest / static_cast<float>(limit), .multiples = {}};
  for (std::size_t i = 0; i < levels.size(); ++i) {
    float const multiple = it.step > 0 ? std::round(levels[i] / it.step) : 0;
    auto const most = static_cast<float>(limit);  // exceeded by levels so small that the step loses digits
    it.multiples.push_back(static_cast<std::int8_t>(std::clamp(multiple, -most, most)));
    it.holds_all = it.holds_all && std::fabs(levels[i] - it.level(i)) <= 4e-7f * largest;
  }
  return it;
}

/// The grid of at most `limit` steps that misses decode levels least: exactly their own where they are on one.
inline int8_grid nearest_int8_grid(std::span<float const> levels, int limit) {
  int8_grid best = int8_grid_of(levels, limit);
  if (best.holds_all) return best;
  double least = std::numeric_limits<double>::infinity();
  for (int steps = limit; steps > limit / 2; --steps) {
    int8_grid it = int8_grid_of(levels, steps);
    double missed = 0;
    for (std::size_t i = 0; i < levels.size(); ++i) missed += std::pow(double{levels[i]} - double{it.level(i)}, 2);
    if (missed < least) {
      least = missed;
      best = std::move(it);
    }
  }
  return best;
}

/// Rounds levels to their grid. Rising levels never fall afterwards, but two may coincide.
inline void snap_to_int8_grid(std::span<float> levels, int limit) {
  int8_grid const grid = int8_grid_of(levels, limit);
  for (std::size_t i = 0; i < levels.size(); ++i) levels[i] = grid.level(i);
}

}  // namespace kvquant
