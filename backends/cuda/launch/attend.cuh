#pragma once
/// \file
/// What `launch/attend.hpp` declares.

#include "backends/cuda/error.hpp"
#include "backends/cuda/kernel/attend.cuh"
#include "backends/cuda/launch/attend.hpp"
#include "backends/cuda/launch/block_shape.hpp"

namespace kvquant::cuda {

template <attend_config Config>
void launch_configured(attend_launch const& it, cudaStream_t on) {
  attend_params params = it.params;
  block_shape const shape = choose_block(Config, static_cast<int>(params.columns));
  params.tiles_per_chunk = static_cast<std::uint32_t>(shape.tiles_per_chunk);
  auto* const kernel = attend_kernel<Config.bits, Config.head_dim, Config.sparse>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)),
        "cudaFuncSetAttribute");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "cudaFuncSetAttribute");
  dim3 const blocks(it.items, static_cast<unsigned>(params.model.kv_heads));
  kernel<<<blocks, static_cast<unsigned>(shape.warps * warp_lanes), shape.shared_bytes, on>>>(params);
  check(cudaGetLastError(), "attend_kernel");
}

template <int Bits, int HeadDim>
void launch_attend(attend_launch const& it, cudaStream_t on) {
  if constexpr (Bits != 16)
    if (it.sparse) return launch_configured<attend_config{Bits, HeadDim, true}>(it, on);
  launch_configured<attend_config{Bits, HeadDim, false}>(it, on);
}

}  // namespace kvquant::cuda
