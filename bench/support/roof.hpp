#pragma once
/// \file
/// What results are compared with, measured in the same run.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <vector>

namespace kvquant::bench {

/// The median of 31 calls.
template <class F>
double median_seconds(F&& f) {
  using clock = std::chrono::steady_clock;
  std::array<double, 31> seconds{};
  for (double& one : seconds) {
    auto const start = clock::now();
    f();
    benchmark::ClobberMemory();
    one = std::chrono::duration<double>(clock::now() - start).count();
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

/// What one thread needs to copy `bytes`.
inline double copy_seconds(std::size_t bytes) {
  std::vector<std::byte> from(bytes, std::byte{1}), to(bytes);
  return median_seconds([&] {
    std::memcpy(to.data(), from.data(), bytes);
    benchmark::DoNotOptimize(to.data());
  });
}

}  // namespace kvquant::bench
