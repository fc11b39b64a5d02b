// Language-level tests: divergence, warp operations, atomics, calls, printf, constants, shared memory.
#include <cooperative_groups.h>
#include <cuda_fp16.h>
#include <algorithm>
#include <cstring>
#include <cuda/atomic>

#include "check.hpp"
namespace cg = cooperative_groups;

template <typename T>
__global__ void add_kernel(T const* a, T const* b, T* c, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) c[i] = a[i] + b[i];
}
template <typename T>
static void test_add(int n) {
  std::vector<T> a(n), b(n);
  for (int i = 0; i < n; ++i) a[i] = T(i % 100), b[i] = T(i % 27);
  DeviceBuffer<T> da(a), db(b), dc(n);
  add_kernel<T><<<7, 128>>>(da.ptr, db.ptr, dc.ptr, n);
  CUDA_OK(cudaGetLastError());
  auto c = dc.host();
  for (int i = 0; i < n; ++i) CHECK(c[i] == T(a[i] + b[i]));
}

__global__ void reduce_kernel(float const* in, float* out, int n) {
  __shared__ float part[32];
  float s = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) s += in[i];
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = s;
  __syncthreads();
  if (threadIdx.x < 32) {
    s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
    for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
    if (threadIdx.x == 0) *out = s;
  }
}

// Collatz lengths: strongly divergent loops, with early exits.
__global__ void collatz_kernel(int* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  long long x = i + 1;
  int steps = 0;
  while (x != 1) {
    x = x & 1 ? 3 * x + 1 : x / 2;
    if (++steps == 150) break;
  }
  out[i] = steps;
}

__global__ void warp_kernel(unsigned* out) {
  unsigned l = threadIdx.x, m = ~0u;
  unsigned* o = out + l * 16;
  o[0] = __ballot_sync(m, l % 3 == 0);
  o[1] = __any_sync(m, l == 31) + 2 * __all_sync(m, l < 32) + 4 * __all_sync(m, l < 31);
  o[2] = __match_any_sync(m, l / 5);
  int pred;
  o[3] = __match_all_sync(m, 7, &pred) + pred;
  o[4] = __shfl_up_sync(m, l, 3, 8);
  o[5] = __shfl_down_sync(m, l, 2, 16);
  o[6] = __shfl_xor_sync(m, l, 5, 8);
  o[7] = __shfl_sync(m, l, 9, 4);
  o[8] = __reduce_add_sync(m, l) + __reduce_max_sync(m, l) + __reduce_xor_sync(m, l);
  if (l % 2)
    o[9] = __ballot_sync(0xaaaaaaaa, l > 10);
  else
    o[9] = __popc(__activemask());
  auto tile = cg::tiled_partition<8>(cg::this_thread_block());
  o[10] = tile.shfl(l, 2) + tile.ballot(l & 1);
  if (l < 20) {
    auto co = cg::coalesced_threads();
    o[12] = co.size() * 100 + co.thread_rank();
  } else
    o[12] = 0;
  // Lanes of one group meet at two different warp barriers.
  __shared__ unsigned s[32];
  s[l] = l;
  if (l < 16) {
    __syncwarp();
    o[13] = s[31 - l];
  } else {
    __syncwarp();
    o[13] = s[31 - l];
  }
}

__constant__ float c_table[8];
__device__ int d_counter = 3;
__device__ int d_array[4] = {1, 2, 3, 4};
__device__ int* d_pointer = &d_array[2];

__noinline__ __device__ long long factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }
__noinline__ __device__ int choose(int k, int v) {
  switch (k) {
    case 0: return v + 1;
    case 1: return v * 3;
    case 2: return v ^ 7;
    case 3: return v - 9;
    case 4: return v << 2;
    case 5: return v / 7;
    case 6: return __popc(v);
    default: return -1;
  }
}
struct Params {
  int a[5];
  float f;
  short s;
};
__global__ void misc_kernel(Params p, float* f, long long* fact, int* ch, int* idx) {
  int i = threadIdx.x;
  f[i] = c_table[i & 7] * p.f + p.a[i % 5] + p.s;  // dynamic index into the parameter
  fact[i] = factorial(i % 15);
  ch[i] = choose(i % 9, i * 11);
  int local[16];
  for (int k = 0; k < 16; ++k) local[(k * 7 + i) & 15] = k;
  idx[i] = local[i & 15];
  if (i == 0) atomicAdd(&d_counter, *d_pointer + d_array[3]);
  if (i == 5) printf("printf %d %5.2f %s %c %llu\n", i, 1.5, "text", 'x', 123456789012ull);
}

__global__ void atomic_kernel(unsigned* u, int* s, unsigned long long* ll, float* f, double* d, half2* h) {
  __shared__ unsigned bins[16];
  if (threadIdx.x < 16) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[threadIdx.x % 16], threadIdx.x);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&u[threadIdx.x], bins[threadIdx.x]);
  int t = blockIdx.x * blockDim.x + threadIdx.x;
  atomicMax(&s[0], t);
  atomicMin(&s[1], -t);
  atomicOr(&s[2], 1 << (t & 31));
  atomicXor(&s[3], t);
  atomicInc((unsigned*)&s[4], 9);
  atomicExch(&s[5], 77);
  atomicAdd(ll, (unsigned long long)t << 20);
  atomicAdd(f, 1.0f);
  atomicAdd(d, 0.5);
  atomicAdd(h, __floats2half2_rn(1.0f, 2.0f));
  cuda::atomic_ref<int, cuda::thread_scope_device> r(s[6]);
  r.fetch_add(2, cuda::memory_order_acq_rel);
  // A lock held by one lane at a time (needs forward progress inside the warp).
  bool waiting = t < 40;
  while (waiting) {
    if (atomicCAS(&s[7], 0, 1) == 0) {
      int volatile* v = s + 8;
      *v = *v + 1;
      __threadfence();
      atomicExch(&s[7], 0);
      waiting = false;
    }
  }
}

__global__ void sync_kernel(int* out) {
  int n = __syncthreads_count(threadIdx.x % 3 == 0);
  int a = __syncthreads_and(threadIdx.x < 100), o = __syncthreads_or(threadIdx.x == 99);
  out[threadIdx.x] = n * 4 + (a != 0) * 2 + (o != 0);
}

__global__ void grid_kernel(int* data, int n) {
  auto g = cg::this_grid();
  int i = g.thread_rank();
  for (int round = 0; round < 3; ++round) {
    int v = data[(i + 1) % n];
    g.sync();
    data[i] += v;
    g.sync();
  }
}

__global__ void dynamic_kernel(int const* in, int* out) {
  extern __shared__ int dyn[];
  __shared__ int stat[4];
  dyn[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x < 4) stat[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = dyn[blockDim.x - 1 - threadIdx.x] + stat[threadIdx.x & 3];
}

int main() {
  test_add<int>(5000);
  test_add<float>(3001);
  test_add<double>(777);
  test_add<short>(1000);
  {
    std::vector<float> v(10000);
    for (size_t i = 0; i < v.size(); ++i) v[i] = float(i % 10);
    DeviceBuffer<float> in(v), out(1);
    reduce_kernel<<<1, 256>>>(in.ptr, out.ptr, 10000);
    CHECK(out.host()[0] == 45000.0f);
  }
  {
    DeviceBuffer<int> out(1000);
    collatz_kernel<<<8, 128>>>(out.ptr, 1000);
    auto v = out.host();
    for (int i = 0; i < 1000; ++i) {
      long long x = i + 1;
      int s = 0;
      while (x != 1) {
        x = x & 1 ? 3 * x + 1 : x / 2;
        if (++s == 150) break;
      }
      CHECK(v[i] == s);
    }
  }
  {
    DeviceBuffer<unsigned> out(32 * 16);
    out.zero();
    warp_kernel<<<1, 32>>>(out.ptr);
    auto v = out.host();
    for (unsigned l = 0; l < 32; ++l) {
      unsigned* o = &v[l * 16];
      CHECK(o[0] == 0x49249249);
      CHECK(o[1] == 3);
      unsigned want = 0;
      for (unsigned k = 0; k < 32; ++k) want |= (k / 5 == l / 5) << k;
      CHECK(o[2] == want);
      CHECK(o[3] == 0);
      CHECK(o[4] == (l % 8 >= 3 ? l - 3 : l));
      CHECK(o[5] == (l % 16 < 14 ? l + 2 : l));
      CHECK(o[6] == ((l ^ 5) <= (l | 7) ? (l ^ 5) : l));
      CHECK(o[7] == l / 4 * 4 + 1);
      CHECK(o[8] == 496 + 31);
      CHECK(o[9] == (l % 2 ? 0xaaaaa800u : 16));
      CHECK(o[10] == l / 8 * 8 + 2 + 0xaa);
      CHECK(o[12] == (l < 20 ? 2000 + l : 0));
      CHECK(o[13] == 31 - l);
    }
  }
  {
    float table[8] = {0, 1, 4, 9, 16, 25, 36, 49};
    CUDA_OK(cudaMemcpyToSymbol(c_table, table, sizeof table));
    DeviceBuffer<float> f(64);
    DeviceBuffer<long long> fact(64);
    DeviceBuffer<int> ch(64), idx(64);
    Params p{{10, 20, 30, 40, 50}, 0.5f, -3};
    misc_kernel<<<1, 64>>>(p, f.ptr, fact.ptr, ch.ptr, idx.ptr);
    CUDA_OK(cudaDeviceSynchronize());
    auto vf = f.host();
    auto vl = fact.host();
    auto vc = ch.host(), vi = idx.host();
    for (int i = 0; i < 64; ++i) {
      CHECK(vf[i] == table[i & 7] * 0.5f + p.a[i % 5] - 3);
      long long w = 1;
      for (int k = 2; k <= i % 15; ++k) w *= k;
      CHECK(vl[i] == w);
      int v = i * 11, k = i % 9;
      int c[] = {v + 1, v * 3, v ^ 7, v - 9, v << 2, v / 7, __builtin_popcount(v), -1, -1};
      CHECK(vc[i] == c[k]);
      int want = 0;
      for (int q = 0; q < 16; ++q)
        if (((q * 7 + i) & 15) == (i & 15)) want = q;
      CHECK(vi[i] == want);
    }
    int counter;
    CUDA_OK(cudaMemcpyFromSymbol(&counter, d_counter, sizeof counter));
    CHECK(counter == 3 + 3 + 4);
  }
  {
    DeviceBuffer<unsigned> u(16);
    DeviceBuffer<int> s(16);
    DeviceBuffer<unsigned long long> ll(1);
    DeviceBuffer<float> f(1);
    DeviceBuffer<double> d(1);
    DeviceBuffer<half2> h(1);
    u.zero();
    s.zero();
    ll.zero();
    f.zero();
    d.zero();
    h.zero();
    atomic_kernel<<<4, 64>>>(u.ptr, s.ptr, ll.ptr, f.ptr, d.ptr, h.ptr);
    CUDA_OK(cudaDeviceSynchronize());
    auto vu = u.host();
    auto vs = s.host();
    for (unsigned i = 0; i < 16; ++i) CHECK(vu[i] == 4 * (4 * i + 96));
    CHECK(vs[0] == 255 && vs[1] == -255 && vs[2] == -1 && vs[3] == 0 && vs[4] == 256 % 10 && vs[5] == 77 &&
          vs[6] == 512);
    CHECK(vs[7] == 0 && vs[8] == 40);
    CHECK(ll.host()[0] == (255ull * 256 / 2) << 20);
    CHECK(f.host()[0] == 256 && d.host()[0] == 128);
    half2 hv = h.host()[0];
    CHECK(__half2float(hv.x) == 256 && __half2float(hv.y) == 512);
  }
  {
    DeviceBuffer<int> out(100);
    sync_kernel<<<1, 100>>>(out.ptr);
    for (int v : out.host()) CHECK(v == 34 * 4 + 3);
  }
  {
    int n = 256;
    std::vector<int> v(n, 1);
    DeviceBuffer<int> d(v);
    void* args[] = {&d.ptr, &n};
    CUDA_OK(cudaLaunchCooperativeKernel((void*)grid_kernel, dim3(4), dim3(64), args, 0, nullptr));
    for (int x : d.host()) CHECK(x == 8);
  }
  {
    std::vector<int> v(100);
    for (int i = 0; i < 100; ++i) v[i] = i * i;
    DeviceBuffer<int> in(v), out(100);
    dynamic_kernel<<<1, 100, 400>>>(in.ptr, out.ptr);
    auto o = out.host();
    for (int i = 0; i < 100; ++i) CHECK(o[i] == v[99 - i] + (i & 3));
  }
  return finish("basic");
}
