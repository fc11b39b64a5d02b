#pragma once
/// \file
/// The kernels as functions of the host. Each (bits, head_dim) is compiled by itself.

#include <cuda_runtime_api.h>

#include "backends/cuda/kernel/params.hpp"

namespace kvquant::cuda {

/// What a launch is to be: `items` by `kv_heads` blocks.
struct attend_launch {
  attend_params params;
  std::uint32_t items = 0;
  bool sparse = false;
};

/// Chooses the block's shape and sets `params.columns` and `params.tiles_per_chunk`. `params.columns` comes as the most
/// that an item has. Throws `device`.
using attend_launcher = void (*)(attend_launch const&, cudaStream_t);

/// Defined in `inst/`.
template <int Bits, int HeadDim>
void launch_attend(attend_launch const& it, cudaStream_t on);

/// Null where there is none.
attend_launcher attend_launcher_for(int bits, int head_dim);

/// `outputs`: blocks. Throws `device`.
void launch_merge(merge_params const& params, std::uint32_t outputs, cudaStream_t on);

}  // namespace kvquant::cuda
