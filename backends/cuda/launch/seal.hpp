#pragma once
/// \file
/// The kernels of appending as functions of the host. All throw `device`.

#include <cuda_runtime_api.h>

#include "backends/cuda/kernel/seal_params.hpp"

namespace kvquant::cuda {

template <class T>
void launch_store_rows(incoming_rows<T> const& it, std::uint32_t rows, cudaStream_t on);

void launch_token_ranges(range_params const& it, std::uint32_t rows, cudaStream_t on);

template <int Bits>
void launch_seal(seal_params<Bits> const& it, std::uint32_t pages, std::uint32_t kv_heads, cudaStream_t on);

void launch_settle(settle_params const& it, cudaStream_t on);

}  // namespace kvquant::cuda
