#pragma once
/// \file
/// The kernel of attention over a split.

#include "backends/cuda/agent/attend_agent.cuh"
#include "backends/cuda/kernel/params.hpp"
#include "backends/cuda/tuning.hpp"

namespace kvquant::cuda {

/// A block for every work item (x) and KV head (y). The numbers are those of an `attend_config`, which nvcc does not
/// take as the parameter of a kernel.
template <int Bits, int HeadDim, int Sparse>
__global__ void __launch_bounds__(attend_config{Bits, HeadDim, Sparse != 0}.most_warps() * warp_lanes)
    attend_kernel(__grid_constant__ attend_params const params) {
  extern __shared__ __align__(128) std::byte shared[];
  attend_agent<attend_config{Bits, HeadDim, Sparse != 0}>(params, shared).run();
}

}  // namespace kvquant::cuda
