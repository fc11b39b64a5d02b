#include "backends/cuda/error.hpp"
#include "backends/cuda/kernel/merge.cuh"
#include "backends/cuda/launch/attend.hpp"

namespace kvquant::cuda {

void launch_merge(merge_params const& params, std::uint32_t outputs, cudaStream_t on) {
  // As the kernels before it have it: between different divisions of the cache a multiprocessor runs empty.
  check(cudaFuncSetAttribute(merge_kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "cudaFuncSetAttribute");
  merge_kernel<<<outputs, static_cast<unsigned>(params.head_dim), 0, on>>>(params);
  check(cudaGetLastError(), "merge_kernel");
}

}  // namespace kvquant::cuda
