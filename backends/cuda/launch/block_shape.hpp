#pragma once
/// \file
/// The shape of a block of threads: what fits the device.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "backends/cuda/agent/shared_plan.hpp"
#include "backends/cuda/error.hpp"
#include "backends/cuda/tuning.hpp"

namespace kvquant::cuda {

inline int device_attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

struct block_shape {
  int warps = 0, tiles_per_chunk = 0;
  std::uint32_t shared_bytes = 0;
};

/// The least shared memory that a block can do with.
constexpr std::uint32_t least_shared_bytes(attend_config const& config, int columns) {
  return shared_plan(config, slabs_per_page, columns, 1).end;
}

/// The shape that keeps most warps on a multiprocessor; of those, small blocks, and chunks as long as may be. Throws
/// `device` where none fits.
inline block_shape choose_block(attend_config const& config, int columns) {
  int const of_block = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  int const of_multiprocessor = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  int const reserved = device_attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  block_shape best;
  int best_resident = 0;
  for (int warps = slabs_per_page; warps <= config.most_warps(); warps *= 2)
    for (int tiles = most_tiles_per_chunk; tiles >= warps / slabs_per_page; tiles /= 2) {
      shared_plan const plan(config, warps, columns, tiles);
      if (plan.end > static_cast<std::uint32_t>(of_block)) continue;
      int const blocks = of_multiprocessor / (static_cast<int>(plan.end) + reserved);
      int const resident = std::min(config.most_warps(), blocks * warps);
      bool const better = resident > best_resident || (resident == best_resident && best.warps < few_warps);
      if (!better) continue;
      best = {warps, tiles, plan.end};
      best_resident = resident;
    }
  require(best_resident > 0, errc::device, "attend_kernel: ", config.bits, " bits, head_dim ", config.head_dim,
          ": needs ", least_shared_bytes(config, columns), " bytes of shared memory, a block has ", of_block);
  return best;
}

}  // namespace kvquant::cuda
