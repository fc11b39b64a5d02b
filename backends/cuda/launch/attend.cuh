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
  if constexpr (Config.sparse()) params.columns = Config.slot_columns;
  block_shape const shape = choose_block(Config, static_cast<int>(params.columns));
  params.tiles_per_chunk = static_cast<std::uint32_t>(shape.tiles_per_chunk);
  auto* const kernel = attend_kernel<Config.bits, Config.head_dim, Config.slot_columns>;
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
  if constexpr (Bits == 16)
    launch_configured<attend_config{Bits, HeadDim, 0}>(it, on);
  else if (!it.sparse)
    launch_configured<attend_config{Bits, HeadDim, 0}>(it, on);
  else if (it.params.columns == 1)
    launch_configured<attend_config{Bits, HeadDim, 1}>(it, on);
  else if (it.params.columns <= 4)
    launch_configured<attend_config{Bits, HeadDim, 4}>(it, on);
  else
    launch_configured<attend_config{Bits, HeadDim, 8}>(it, on);
}

}  // namespace kvquant::cuda
