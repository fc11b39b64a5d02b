#pragma once
/// \file
/// The kernel that puts splits together.

#include "backends/cuda/arch/instructions.cuh"
#include "backends/cuda/kernel/params.hpp"

namespace kvquant::cuda {

/// A block for every (row, head), a thread for every channel.
static __global__ void merge_kernel(__grid_constant__ merge_params const params) {
  merge_item const it = params.outputs[blockIdx.x];
  std::size_t const size = partial_floats(params.head_dim);
  auto const record = [&](std::uint32_t i) {
    work_item const& from = params.items[it.first_item + i];
    return params.partials + (from.partial + static_cast<std::size_t>(it.kv_head * from.columns + it.column)) * size;
  };
  float largest = record(0)[0], sum = 0, o = 0;
  for (std::uint32_t i = 1; i < it.items; ++i) largest = fmaxf(largest, record(i)[0]);
  for (std::uint32_t i = 0; i < it.items; ++i) {
    float const factor = arch::exp2(record(i)[0] - largest);
    sum += factor * record(i)[1];
    o += factor * record(i)[2 + threadIdx.x];
  }
  it.out[threadIdx.x] = o / sum;
  if (threadIdx.x != 0) return;
  if (it.score_max != nullptr) *it.score_max = largest * 0.693147181f;
  if (it.score_sum != nullptr) *it.score_sum = sum;
}

}  // namespace kvquant::cuda
