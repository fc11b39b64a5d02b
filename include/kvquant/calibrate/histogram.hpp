#pragma once
/// \file
/// Weighted histograms over [−1, 1]: what calibration remembers of the normalised values it has seen.

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/quantize/q_norm.hpp"

namespace kvquant {

/// Each bin keeps its mass and exact first and second moment, so that the error of a codebook which does not cut
/// through a bin is exact. Histograms add: over samples, threads and machines. Memory is O(bins), whatever was seen.
class histogram {
 public:
  ///@{
  /// Bins over [−1, 1].
  static constexpr std::size_t default_bins = 4096;
  static constexpr std::size_t most_bins = std::size_t{1} << 20;
  ///@}

  /// Throws `bad_shape` for no bins, or too many.
  explicit histogram(std::size_t bins = default_bins) : bins_(bins) {
    require(bins >= 1 && bins <= most_bins, errc::bad_shape, "histogram: ", bins, " bins, expected 1 to ", most_bins);
  }

  /// The bin of a normalised value; what lies beyond ±1 (by rounding of the range) falls into the end bins, NaN into
  /// the first.
  std::size_t bin_of(float x) const noexcept {
    auto const last = static_cast<float>(bins_.size() - 1);
    float const position = (x + 1.0f) * 0.5f * static_cast<float>(bins_.size());
    return static_cast<std::size_t>(position > 0 ? std::min(position, last) : 0.0f);
  }
  /// Adds a normalised value.
  void add(float x, double weight) noexcept { bins_[bin_of(x)].add(x, weight); }
  /// The same where the bin is known.
  void add_to(std::size_t bin, float x, double weight) noexcept { bins_[bin].add(x, weight); }

  /// Throws `bad_shape` for another number of bins.
  histogram& operator+=(histogram const& other) {
    require(other.bins_.size() == bins_.size(), errc::bad_shape, "histogram: merging ", other.bins_.size(),
            " bins into ", bins_.size());
    for (std::size_t i = 0; i < bins_.size(); ++i) bins_[i] += other.bins_[i];
    return *this;
  }

  ///@{
  /// Mass and moments, from −1 on.
  std::span<moments const> bins() const { return bins_; }
  std::span<moments> bins() { return bins_; }
  ///@}

  /// Of all bins together.
  moments total() const {
    moments sum;
    for (moments const& bin : bins_) sum += bin;
    return sum;
  }

 private:
  std::vector<moments> bins_;
};

}  // namespace kvquant
