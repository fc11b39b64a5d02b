#pragma once
/// \file
/// Exact outer quantiles of a stream in memory proportional to the tail.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"

namespace kvquant {

/// Keeps the `capacity` smallest and largest of the values added. What it keeps depends on the values alone, not on
/// their order, so that sketches merge exactly.
class tail_sketch {
 public:
  /// `capacity`: values kept at each end; see `capacity_for`.
  explicit tail_sketch(std::size_t capacity) : capacity_(capacity) {
    require(capacity > 0, errc::bad_value, "tail sketch: capacity 0, expected at least 1");
  }

  /// Values to keep for the `fraction / 2` and `1 − fraction / 2` quantiles of up to `values` values.
  static std::size_t capacity_for(double fraction, std::size_t values) {
    return static_cast<std::size_t>(std::floor(fraction / 2 * static_cast<double>(values))) + 2;
  }

  /// Throws `bad_value` for what is not finite: it has no place in an order.
  void add(float x) {
    if (!std::isfinite(x)) [[unlikely]]
      throw error{errc::bad_value, text("tail sketch: value ", count_, " is ", x, ", expected a finite number")};
    ++count_;
    low_.push(x, capacity_, std::less<>{});
    high_.push(x, capacity_, std::greater<>{});
  }

  /// As if the other's values had been added. Throws `bad_shape` for another capacity.
  void merge(tail_sketch const& other) {
    require(capacity_ == other.capacity_, errc::bad_shape, "tail sketch: merging capacity ", other.capacity_, " into ",
            capacity_);
    count_ += other.count_;
    for (float const x : other.low_.kept) low_.push(x, capacity_, std::less<>{});
    for (float const x : other.high_.kept) high_.push(x, capacity_, std::greater<>{});
  }

  /// Values that were added.
  std::size_t count() const { return count_; }

  /// The `outside` and `1 − outside` quantiles of all values added, interpolated linearly between order statistics.
  std::pair<float, float> quantiles(double outside) {
    require(count_ > 0, errc::bad_value, "tail sketch: no values were observed");
    double const rank = outside * static_cast<double>(count_ - 1);
    auto const whole = static_cast<std::size_t>(rank);
    require(outside >= 0 && outside <= 0.5 && whole + 1 < capacity_, errc::bad_value, "tail sketch: quantile ", outside,
            " of ", count_, " values needs ", whole + 2, " kept, has ", capacity_);
    auto const part = static_cast<float>(rank - static_cast<double>(whole));
    return {low_.interpolate(whole, part, capacity_, std::less<>{}),
            high_.interpolate(whole, part, capacity_, std::greater<>{})};
  }

 private:
  /// One end: at least the `capacity` first values in the order `before`, and some that are yet to be dropped.
  struct tail {
    std::vector<float> kept;
    float last = 0;  // of the kept ones when they were last shrunk: what does not come before it is not needed
    bool full = false;

    template <class Before>
    void push(float x, std::size_t capacity, Before before) {
      if (full && !before(x, last)) return;
      kept.push_back(x);
      if (kept.size() >= 2 * capacity + 16) shrink(capacity, before);
    }
    template <class Before>
    void shrink(std::size_t capacity, Before before) {
      if (kept.size() <= capacity) return;
      auto const end = kept.begin() + static_cast<std::ptrdiff_t>(capacity);
      std::nth_element(kept.begin(), end - 1, kept.end(), before);
      kept.erase(end, kept.end());
      last = kept.back();
      full = true;
    }
    template <class Before>
    float interpolate(std::size_t rank, float part, std::size_t capacity, Before before) {
      shrink(capacity, before);
      std::sort(kept.begin(), kept.end(), before);
      float const next = kept[std::min(rank + 1, kept.size() - 1)];
      return kept[rank] + part * (next - kept[rank]);
    }
  };

  std::size_t capacity_;
  std::size_t count_ = 0;
  tail low_, high_;
};

}  // namespace kvquant
