#pragma once
/// \file
/// What benchmarks of the CUDA backend share.

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>

#include "backends/cuda/memory.hpp"
#include "backends/cuda/supports.hpp"

namespace kvquant::bench {

/// Bytes per second that a copy within the device reads and writes.
inline double copy_bandwidth() {
  constexpr std::size_t bytes = std::size_t{1} << 30;
  cuda::device_array<std::byte> from, to;
  from.reserve(bytes);
  to.reserve(bytes);
  cuda::stream const on;
  cuda::event_timer const timer;
  double best = 0;
  for (int round = 0; round < 9; ++round) {
    timer.start(on);
    cuda::check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, on.get()), "cudaMemcpyAsync");
    best = std::max(best, 2 * static_cast<double>(bytes) / timer.seconds(on));
  }
  return best;
}

/// `measure()` where there is a device. The exit status: 77 without one, 1 after an error.
template <class Measure>
int run_on_device(char const* name, Measure&& measure) {
  try {
    if (!cuda::missing_device().empty()) {
      std::printf("skipped: needs %s\n", cuda::missing_device().c_str());
      return 77;
    }
    measure();
    return 0;
  } catch (std::exception const& failure) {
    std::fprintf(stderr, "%s: %s\n", name, failure.what());
    return 1;
  }
}

}  // namespace kvquant::bench
