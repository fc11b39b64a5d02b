// Executor speed: run once with PTXRUN_STATS=file for the instruction counts, once without for the times.
#include <cuda_fp16.h>
#include <mma.h>
#include <cstring>

#include "check.hpp"

__global__ void saxpy(float const* x, float* y, float a, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = a * x[i] + y[i];
}
__global__ void alu(unsigned* o, int rounds) {
  unsigned a = threadIdx.x, b = blockIdx.x, c = 1;
  float f = a, g = b;
  for (int i = 0; i < rounds; ++i) {
    a = a * 1664525u + b;
    b ^= a >> 7;
    c = (c << 3 | c >> 29) + b;
    f = f * 0.99f + g;
    g = fminf(g + 1.5f, f);
  }
  o[blockIdx.x * blockDim.x + threadIdx.x] = a ^ b ^ c ^ (unsigned)f ^ (unsigned)g;
}
__global__ void tile_gemm(float const* a, float const* b, float* c, int n) {
  __shared__ float sa[16][16], sb[16][17];
  int tx = threadIdx.x, ty = threadIdx.y, row = blockIdx.y * 16 + ty, col = blockIdx.x * 16 + tx;
  float acc = 0;
  for (int k = 0; k < n; k += 16) {
    sa[ty][tx] = a[row * n + k + tx];
    sb[ty][tx] = b[(k + ty) * n + col];
    __syncthreads();
    for (int i = 0; i < 16; ++i) acc += sa[ty][i] * sb[i][tx];
    __syncthreads();
  }
  c[row * n + col] = acc;
}
__global__ void divergent(int* o) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  long long x = i + 1;
  int s = 0;
  while (x != 1) {
    x = x & 1 ? 3 * x + 1 : x / 2;
    ++s;
  }
  o[i] = s;
}
__global__ void mma_loop(float* o, int rounds) {
  unsigned a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {4, 5};
  float c[4] = {};
  for (int i = 0; i < rounds; ++i)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  o[threadIdx.x] = c[0] + c[1] + c[2] + c[3];
}

template <typename F>
static void timed(char const* name, F f) {
  cudaEvent_t a, b;
  cudaEventCreate(&a);
  cudaEventCreate(&b);
  cudaEventRecord(a);
  f();
  cudaEventRecord(b);
  float ms;
  cudaEventElapsedTime(&ms, a, b);
  std::printf("%s %.3f\n", name, ms);
}

int main() {
  int const n = 1 << 20;
  DeviceBuffer<float> x(n), y(n), z(n);
  DeviceBuffer<unsigned> o(1 << 16);
  x.zero();
  y.zero();
  timed("saxpy", [&] { saxpy<<<256, 256>>>(x.ptr, y.ptr, 2.0f, n); });
  timed("alu", [&] { alu<<<32, 256>>>(o.ptr, 1000); });
  timed("tile_gemm", [&] { tile_gemm<<<dim3(16, 16), dim3(16, 16)>>>(x.ptr, y.ptr, z.ptr, 256); });
  timed("divergent", [&] { divergent<<<64, 256>>>((int*)o.ptr); });
  timed("mma_loop", [&] { mma_loop<<<1, 32>>>(z.ptr, 20000); });
  return finish("bench");
}
