#pragma once
/// \file
/// What numbers of many samples come to.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <numeric>
#include <vector>

namespace kvquant::tasks {

struct moments {
  std::size_t count = 0;
  double mean = 0;
  double standard_error = 0;  ///< of the mean; 0.5, the most that a share can have, where one number says nothing of it
};

inline moments moments_of(std::vector<double> const& values) {
  auto const n = static_cast<double>(values.size());
  if (values.empty()) return {};
  double const mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (double const x : values) squares += (x - mean) * (x - mean);
  return {values.size(), mean, values.size() > 1 ? std::sqrt(squares / (n - 1) / n) : 0.5};
}

/// Of `values` − `base`, sample by sample.
inline moments difference(std::vector<double> values, std::vector<double> const& base) {
  std::transform(values.begin(), values.end(), base.begin(), values.begin(), std::minus<>{});
  return moments_of(values);
}

/// Whether scores are no more than two standard errors above what a guess gets.
inline bool at_chance(std::vector<double> const& scores, double chance) {
  moments const it = moments_of(scores);
  return it.mean - 2 * it.standard_error <= chance;
}

}  // namespace kvquant::tasks
