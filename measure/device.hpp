#pragma once
/// \file
/// A CUDA device to measure on.

#include <algorithm>
#include <cstddef>
#include <string>

#include "backends/cuda/launch/block_shape.hpp"
#include "backends/cuda/memory.hpp"
#include "backends/cuda/supports.hpp"

namespace kvquant::measure {

/// Throws `errc::unsupported` where there is no device.
inline void require_device() {
  require(cuda::missing_device().empty(), errc::unsupported, "CUDA backend: needs ", cuda::missing_device());
}

/// "sm_90". Throws `errc::unsupported` where there is no device.
inline std::string device_architecture() {
  require_device();
  return text("sm_", cuda::device_attribute(cudaDevAttrComputeCapabilityMajor),
              cuda::device_attribute(cudaDevAttrComputeCapabilityMinor));
}

inline std::size_t free_device_bytes() {
  std::size_t free = 0, all = 0;
  cuda::check(cudaMemGetInfo(&free, &all), "cudaMemGetInfo");
  return free;
}

/// Bytes per second that a copy within the device reads and writes.
inline double copy_bandwidth() {
  std::size_t const bytes = 16 * static_cast<std::size_t>(cuda::device_attribute(cudaDevAttrL2CacheSize));
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

}  // namespace kvquant::measure
