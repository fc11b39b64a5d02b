#pragma once
/// \file
/// What results are compared with, measured in the same run.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <span>
#include <vector>

#include "kvquant/core/executor.hpp"

namespace kvquant::measure {

/// Makes the compiler believe that somebody reads what `it` points to.
inline void keep(void const* it) { asm volatile("" : : "r"(it) : "memory"); }

template <class F>
double seconds_of(F&& f) {
  using clock = std::chrono::steady_clock;
  auto const start = clock::now();
  f();
  return std::chrono::duration<double>(clock::now() - start).count();
}

/// The upper one of two in the middle.
inline double median(std::span<double> x) {
  auto const middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

/// How many times longer than `it` the baseline takes: the median of the rounds' ratios.
inline double median_ratio(std::span<double const> baseline, std::span<double const> it) {
  std::vector<double> ratios(it.size());
  std::transform(baseline.begin(), baseline.end(), it.begin(), ratios.begin(), std::divides<>{});
  return median(ratios);
}

/// The median of 31 calls.
template <class F>
double median_seconds(F&& f) {
  std::array<double, 31> seconds{};
  for (double& one : seconds) one = seconds_of(f);
  return median(seconds);
}

/// What one thread needs to copy `bytes`.
inline double copy_seconds(std::size_t bytes) {
  std::vector<std::byte> from(bytes, std::byte{1}), to(bytes);
  return median_seconds([&] {
    std::memcpy(to.data(), from.data(), bytes);
    keep(to.data());
  });
}

/// A sum with more accumulators than a core has additions in flight, so that memory alone limits it.
inline std::uint64_t parallel_sum(std::span<std::uint64_t const> x) {
  std::array<std::uint64_t, 32> sums{};
  for (std::size_t i = 0; i + sums.size() <= x.size(); i += sums.size())
    for (std::size_t lane = 0; lane < sums.size(); ++lane) sums[lane] += x[i + lane];
  return std::accumulate(sums.begin(), sums.end(), std::uint64_t{0});
}

/// Bytes per second that all workers of `executor` together read from a buffer of 256 MiB.
inline double read_bandwidth(executor_ref executor) {
  constexpr std::size_t bytes = std::size_t{256} << 20, piece = std::size_t{1} << 19;  // numbers, so 4 MiB
  std::vector<std::uint64_t> const buffer(bytes / sizeof(std::uint64_t), 1);
  double const seconds = median_seconds([&] {
    executor.parallel_for(buffer.size() / piece, [&](std::size_t task, int) {
      std::uint64_t const sum = parallel_sum(std::span(buffer).subspan(task * piece, piece));
      keep(&sum);
    });
  });
  return static_cast<double>(bytes) / seconds;
}

}  // namespace kvquant::measure
