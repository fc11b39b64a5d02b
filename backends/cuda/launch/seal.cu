#include "backends/cuda/launch/seal.hpp"

#include "backends/cuda/error.hpp"
#include "backends/cuda/kernel/seal.cuh"

namespace kvquant::cuda {

template <class T>
void launch_store_rows(incoming_rows<T> const& it, std::uint32_t rows, cudaStream_t on) {
  store_rows_kernel<<<rows, seal_threads, 0, on>>>(it);
  check(cudaGetLastError(), "store_rows_kernel");
}
template void launch_store_rows(incoming_rows<float> const&, std::uint32_t, cudaStream_t);
template void launch_store_rows(incoming_rows<half> const&, std::uint32_t, cudaStream_t);
template void launch_store_rows(incoming_rows<bfloat16> const&, std::uint32_t, cudaStream_t);

void launch_token_ranges(range_params const& it, std::uint32_t rows, cudaStream_t on) {
  token_ranges_kernel<<<rows, seal_threads, 0, on>>>(it);
  check(cudaGetLastError(), "token_ranges_kernel");
}

template <int Bits>
void launch_seal(seal_params<Bits> const& it, std::uint32_t pages, std::uint32_t kv_heads, cudaStream_t on) {
  auto const bytes = seal_agent<Bits>::shared_bytes(static_cast<std::size_t>(it.elements()));
  check(cudaFuncSetAttribute(seal_kernel<Bits>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
  seal_kernel<Bits><<<dim3(pages, kv_heads), seal_threads, bytes, on>>>(it);
  check(cudaGetLastError(), "seal_kernel");
}
template void launch_seal(seal_params<by_width> const&, std::uint32_t, std::uint32_t, cudaStream_t);
template void launch_seal(seal_params<2> const&, std::uint32_t, std::uint32_t, cudaStream_t);
template void launch_seal(seal_params<3> const&, std::uint32_t, std::uint32_t, cudaStream_t);
template void launch_seal(seal_params<4> const&, std::uint32_t, std::uint32_t, cudaStream_t);
template void launch_seal(seal_params<16> const&, std::uint32_t, std::uint32_t, cudaStream_t);

void launch_settle(settle_params const& it, cudaStream_t on) {
  dim3 const blocks((it.rows.channels + seal_threads - 1) / seal_threads, 2);
  settle_kernel<<<blocks, seal_threads, 0, on>>>(it);
  check(cudaGetLastError(), "settle_kernel");
}

}  // namespace kvquant::cuda
