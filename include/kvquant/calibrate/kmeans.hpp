#pragma once
/// \file
/// The codebook of least weighted squared error, exactly, by dynamic programming over the bins of a histogram.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/quantize/q_norm.hpp"

namespace kvquant {

/// What `exact_kmeans` finds.
struct clustering {
  std::vector<double> centroids;  ///< rising; with fewer distinct bins than clusters the last one repeats
  double objective = 0;           ///< Σ w (x − c)²
};

namespace detail {

/// One-dimensional k-means: D[k][j] = min over i of D[k−1][i] + cost(i, j), where cost(i, j) is the squared error of
/// bins [i, j) about their mean. The best i never decreases with j (the cost obeys the quadrangle inequality), so
/// divide and conquer finds a row in O(n log n).
class exact_kmeans_solver {
 public:
  explicit exact_kmeans_solver(std::span<moments const> bins) {
    for (moments const& bin : bins)
      if (bin.mass > 0) scale_ += bin.mass;
    prefix_.emplace_back();
    for (moments const& bin : bins)
      if (bin.mass > 0) {
        bins_.push_back({bin.mass / scale_, bin.first / scale_, bin.second / scale_});
        moments sum = prefix_.back();
        prefix_.push_back(sum += bins_.back());
      }
  }

  std::size_t size() const { return prefix_.size() - 1; }

  clustering solve(std::size_t clusters) {
    std::size_t const used = std::min(clusters, size());
    best_.assign(size() + 1, std::numeric_limits<double>::infinity());
    best_[0] = 0;
    cut_.assign(used, std::vector<std::size_t>(size() + 1, 0));
    for (std::size_t k = 0; k < used; ++k) {
      std::vector<double> const before = std::exchange(best_, std::vector<double>(size() + 1, infinite));
      fill_row(before, cut_[k], k + 1, size(), k, size() - 1);
    }
    clustering result{std::vector<double>(clusters), best_[size()] * scale_};
    std::size_t end = size();
    for (std::size_t k = used; k-- > 0;) {
      std::size_t const begin = cut_[k][end];
      result.centroids[k] = mean(begin, end);
      end = begin;
    }
    for (std::size_t k = used; k < clusters; ++k) result.centroids[k] = result.centroids[used - 1];
    return result;
  }

 private:
  static constexpr double infinite = std::numeric_limits<double>::infinity();

  moments range(std::size_t begin, std::size_t end) const {
    moments const &a = prefix_[begin], &b = prefix_[end];
    return {b.mass - a.mass, b.first - a.first, b.second - a.second};
  }
  /// Of bins [begin, end), summed anew: a difference of prefixes loses digits.
  double mean(std::size_t begin, std::size_t end) const {
    moments sum;
    for (std::size_t i = begin; i < end; ++i) sum += bins_[i];
    return sum.mean();
  }
  double cost(std::size_t begin, std::size_t end) const {
    moments const m = range(begin, end);
    return m.mass > 0 ? std::max(0.0, m.second - m.first * m.first / m.mass) : 0;
  }

  /// Rows j in [low, high], whose best cut lies in [first, last]. The smallest best cut wins, so that ties are settled.
  void fill_row(std::vector<double> const& before, std::vector<std::size_t>& cut, std::size_t low, std::size_t high,
                std::size_t first, std::size_t last) {
    if (low > high) return;
    std::size_t const middle = low + (high - low) / 2;
    std::size_t at = first;
    for (std::size_t i = first; i <= std::min(last, middle - 1); ++i) {
      double const total = before[i] + cost(i, middle);
      if (total < best_[middle]) best_[middle] = total, at = i;
    }
    cut[middle] = at;
    if (middle > low) fill_row(before, cut, low, middle - 1, first, at);
    fill_row(before, cut, middle + 1, high, at, last);
  }

  double scale_ = 0;
  std::vector<moments> bins_;                  // [size], those with mass; the masses sum to 1
  std::vector<moments> prefix_;                // [size + 1], sums of the bins before
  std::vector<double> best_;                   // [size + 1]
  std::vector<std::vector<std::size_t>> cut_;  // [clusters][size + 1]
};

}  // namespace detail

/// Minimises Σ w (x − c)² over `clusters` centroids. `bins` by rising value; at least one must have mass. Throws
/// `bad_value` for no clusters, and for bins whose moments cannot be.
inline clustering exact_kmeans(std::span<moments const> bins, std::size_t clusters) {
  require(clusters >= 1, errc::bad_value, "k-means: no clusters, expected at least 1");
  for (std::size_t i = 0; i < bins.size(); ++i)
    require(bins[i].mass >= 0 && std::isfinite(bins[i].mass) && std::isfinite(bins[i].first) &&
                std::isfinite(bins[i].second),
            errc::bad_value, "k-means: bin ", i, " has mass ", bins[i].mass, " and moments ", bins[i].first, ", ",
            bins[i].second, ", expected finite ones and no negative mass");
  detail::exact_kmeans_solver solver(bins);
  require(solver.size() > 0, errc::bad_value, "k-means: the histogram is empty");
  return solver.solve(clusters);
}

}  // namespace kvquant
