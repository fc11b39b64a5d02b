// Asynchronous copies, barriers and pipelines of libcu++ and cooperative groups.
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <algorithm>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <numeric>

#include "check.hpp"
namespace cg = cooperative_groups;
#pragma nv_diag_suppress static_var_with_dynamic_init

__global__ void barrier_kernel(int const* g, int* o) {
  __shared__ alignas(128) int s[256];
  __shared__ cuda::barrier<cuda::thread_scope_block> bar;
  auto blk = cg::this_thread_block();
  if (threadIdx.x == 0) init(&bar, blockDim.x);
  __syncthreads();
  for (int r = 0; r < 3; ++r) {
    cuda::memcpy_async(blk, s, g + r * 256, cuda::aligned_size_t<16>(1024), bar);
    bar.arrive_and_wait();
    o[r * 256 + threadIdx.x] = s[255 - threadIdx.x];
    bar.arrive_and_wait();
  }
}

__global__ void pipeline_kernel(int const* g, int* o) {
  __shared__ int s[2][256];
  __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
  auto blk = cg::this_thread_block();
  auto pipe = cuda::make_pipeline(blk, &state);
  auto fetch = [&](int r) {
    pipe.producer_acquire();
    cuda::memcpy_async(blk, s[r % 2], g + r * 256, sizeof(int) * 256, pipe);
    pipe.producer_commit();
  };
  fetch(0);
  for (int r = 0; r < 3; ++r) {
    if (r < 2) fetch(r + 1);
    pipe.consumer_wait();
    o[r * 256 + threadIdx.x] = s[r % 2][255 - threadIdx.x];
    pipe.consumer_release();
  }
}

__global__ void groups_kernel(int* o) {
  auto w = cg::tiled_partition<32>(cg::this_thread_block());
  int sum = cg::reduce(w, (int)threadIdx.x, cg::plus<int>());
  auto sub = cg::labeled_partition(w, threadIdx.x % 3);
  int top = cg::reduce(sub, (int)threadIdx.x, cg::greater<int>());
  o[threadIdx.x] = sum * 1000 + top;
}

int main() {
  std::vector<int> v(768);
  std::iota(v.begin(), v.end(), 5);
  DeviceBuffer<int> g(v), o(768);
  auto check_reversed = [&] {
    auto h = o.host();
    for (int r = 0; r < 3; ++r)
      for (int i = 0; i < 256; ++i) CHECK(h[r * 256 + i] == v[r * 256 + 255 - i]);
    o.zero();
  };
  barrier_kernel<<<1, 256>>>(g.ptr, o.ptr);
  check_reversed();
  pipeline_kernel<<<1, 256>>>(g.ptr, o.ptr);
  check_reversed();
  groups_kernel<<<1, 32>>>(o.ptr);
  auto h = o.host();
  for (int i = 0; i < 32; ++i) CHECK(h[i] == 496000 + (i % 3 == 0 ? 30 : i % 3 == 1 ? 31 : 29));
  return finish("async");
}
