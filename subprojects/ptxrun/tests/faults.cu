// Each mode provokes one kind of error; check_faults.py looks for the message.
#include <cuda_pipeline.h>
#include <cassert>
#include <cstring>

#include "check.hpp"

__global__ void oob_kernel(int* p, int n) { p[threadIdx.x + n] = 1; }
__global__ void oob_shared_kernel(int* p, int i) {
  __shared__ int s[8];
  s[threadIdx.x % 8] = 1;
  __syncthreads();
  p[0] = s[i];
}
__global__ void misaligned_kernel(char* p) { *(int*)(p + 2) = 1; }
__global__ void race_kernel(int* p) {
  __shared__ int s[64];
  s[threadIdx.x] = threadIdx.x;
  // missing __syncthreads()
  p[threadIdx.x] = s[63 - threadIdx.x];
}
__global__ void no_race_kernel(int* p) {
  __shared__ int s[64];
  s[threadIdx.x] = threadIdx.x;
  __syncthreads();
  p[threadIdx.x] = s[63 - threadIdx.x];
}
__global__ void uninit_shared_kernel(int* p) {
  __shared__ int s[64];
  if (threadIdx.x < 63) s[threadIdx.x] = 1;
  __syncthreads();
  p[threadIdx.x] = s[threadIdx.x];
}
__global__ void copy_kernel(int const* a, int* b) { b[threadIdx.x] = a[threadIdx.x]; }
__global__ void deadlock_kernel(int* p) {
  if (threadIdx.x < 32)
    asm volatile("bar.sync 1, 64;");
  else
    asm volatile("bar.sync 2, 64;");
  p[0] = 1;
}
__global__ void assert_kernel(int n) { assert(n == 3); }
__global__ void trap_kernel() { asm volatile("trap;"); }
__global__ void loop_kernel(int volatile* p) {
  while (*p == 0) {
  }
}

// Copies through two buffers: the next piece is under way while one is used. `wait_prior`: 1 is right, 2 too weak;
// `barriers`: 2 is right; 1: none before the buffer is filled again; 0: before the wait instead of after it.
template <int wait_prior, int barriers>
__global__ void async_kernel(int4 const* g, int4* o) {
  __shared__ int4 s[2][64];
  int t = threadIdx.x;
  auto fetch = [&](int i) {
    if (i < 4) __pipeline_memcpy_async(&s[i % 2][t], g + i * 64 + t, 16);
    __pipeline_commit();
  };
  fetch(0);
  for (int i = 0; i < 4; ++i) {
    fetch(i + 1);
    if (barriers == 0) __syncthreads();
    __pipeline_wait_prior(wait_prior);
    if (barriers > 0) __syncthreads();
    o[i * 64 + t] = s[i % 2][63 - t];
    if (barriers != 1) __syncthreads();
  }
}
__global__ void async_overwrite_kernel(int const* g, int* o) {
  __shared__ int s[64];
  int t = threadIdx.x;
  __pipeline_memcpy_async(&s[t], g + t, 4);
  s[t] = 1;
  asm volatile("cp.async.wait_all;");
  o[t] = s[t];
}
// Ends with wait_all, which needs no commit; `early`: ldmatrix reads before it.
__global__ void async_matrix_kernel(int4 const* g, int* o, int early) {
  __shared__ int4 s[32];
  int t = threadIdx.x, r[4] = {};
  unsigned a = (unsigned)__cvta_generic_to_shared(&s[t]);
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(a), "l"(g + t));
  if (early) asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(a));
  asm volatile("cp.async.wait_all;");
  __syncthreads();
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "+r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(a));
  o[t] = r[0] + r[1] + r[2] + r[3] + s[31 - t].x;
}
// The waiting threads have not issued the copies; an mbarrier tells them of the end.
__global__ void async_mbarrier_kernel(int const* g, int* o, int early) {
  __shared__ int s[64];
  __shared__ uint64_t bar;
  int t = threadIdx.x;
  unsigned b = (unsigned)__cvta_generic_to_shared(&bar), done = 0;
  if (t == 0) asm volatile("mbarrier.init.shared.b64 [%0], 32;" ::"r"(b));
  __syncthreads();
  if (t < 32) {
    __pipeline_memcpy_async(&s[t], g + t, 4);
    __pipeline_memcpy_async(&s[t + 32], g + t + 32, 4);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(b));
  }
  if (early) o[t] = s[t];
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], 0; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(b));
  o[t] = s[63 - t];
}

// Known traffic: see check_faults.py.
__global__ void traffic_kernel(float const* p, float* q) {
  __shared__ float s[32 * 32];
  __shared__ double d[32];
  int l = threadIdx.x;
  s[l * 32] = p[l * 8];  // 32 sectors; 32-way bank conflict
  d[l] = 1.0;            // two passes
  __syncthreads();
  float v = s[(31 - l) * 32];
  q[l] = v + (float)d[31 - l];
}

int main(int argc, char** argv) {
  std::string mode = argc > 1 ? argv[1] : "";
  DeviceBuffer<int> a(64), b(64);
  if (mode == "oob")
    oob_kernel<<<2, 32>>>(a.ptr, 40);
  else if (mode == "oob_shared")
    oob_shared_kernel<<<1, 32>>>(a.ptr, 9);
  else if (mode == "misaligned")
    misaligned_kernel<<<1, 1>>>((char*)a.ptr);
  else if (mode == "race")
    race_kernel<<<1, 64>>>(a.ptr);
  else if (mode == "no_race")
    no_race_kernel<<<1, 64>>>(a.ptr);
  else if (mode == "uninit_shared")
    uninit_shared_kernel<<<1, 64>>>(a.ptr);
  else if (mode == "uninit_global")
    copy_kernel<<<1, 64>>>(a.ptr, b.ptr);
  else if (mode == "init_global") {
    a.zero();
    copy_kernel<<<1, 64>>>(a.ptr, b.ptr);
    copy_kernel<<<1, 64>>>(b.ptr, a.ptr);
  } else if (mode == "deadlock")
    deadlock_kernel<<<1, 64>>>(a.ptr);
  else if (mode == "assert")
    assert_kernel<<<1, 1>>>(4);
  else if (mode == "trap")
    trap_kernel<<<1, 1>>>();
  else if (mode == "loop") {
    a.zero();
    loop_kernel<<<1, 1>>>(a.ptr);
  } else if (mode == "traffic") {
    DeviceBuffer<float> p(256), q(32);
    traffic_kernel<<<1, 32>>>(p.ptr, q.ptr);
    CUDA_OK(cudaDeviceSynchronize());
  } else if (mode.substr(0, 5) == "async") {
    std::vector<int> v(1024);
    for (int i = 0; i < 1024; ++i) v[i] = i;
    DeviceBuffer<int> g(v), o(1024);
    auto* p = (int4 const*)g.ptr;
    auto* q = (int4*)o.ptr;
    if (mode == "async_ok")
      async_kernel<1, 2><<<2, 64>>>(p, q);
    else if (mode == "async_wait")
      async_kernel<2, 2><<<2, 64>>>(p, q);
    else if (mode == "async_barrier")
      async_kernel<1, 0><<<2, 64>>>(p, q);
    else if (mode == "async_refill")
      async_kernel<1, 1><<<2, 64>>>(p, q);
    else if (mode == "async_overwrite")
      async_overwrite_kernel<<<2, 64>>>(g.ptr, o.ptr);
    else if (mode == "async_wait_all")
      async_matrix_kernel<<<2, 32>>>(p, o.ptr, 0);
    else if (mode == "async_ldmatrix")
      async_matrix_kernel<<<2, 32>>>(p, o.ptr, 1);
    else if (mode == "async_mbarrier")
      async_mbarrier_kernel<<<2, 64>>>(g.ptr, o.ptr, 0);
    else if (mode == "async_mbarrier_early")
      async_mbarrier_kernel<<<2, 64>>>(g.ptr, o.ptr, 1);
  } else if (mode == "config")
    copy_kernel<<<1, 2000>>>(a.ptr, b.ptr);
  cudaError_t e = cudaGetLastError();
  if (e == cudaSuccess) e = cudaDeviceSynchronize();
  std::printf("error: %s\n", cudaGetErrorString(e));
  return e != cudaSuccess;
}
