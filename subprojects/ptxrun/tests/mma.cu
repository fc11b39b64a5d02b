// Tensor core GEMMs: mma.sync with ldmatrix and cp.async, int8 mma, wmma; LUT matrix-vector product.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <mma.h>
#include <cstring>

#include "check.hpp"

// C[M,N] = A[M,K] * B[N,K]^T; one warp per 16x8 tile of a 32x32 block tile, 8 warps, K step 32, two stages.
__global__ void gemm_kernel(half const* A, half const* B, float* C, int N, int K) {
  __shared__ __align__(16) half sa[2][32][40], sb[2][32][40];
  int t = threadIdx.x, warp = t / 32, lane = t % 32;
  int wm = warp / 4 * 16, wn = warp % 4 * 8;
  half const* ga = A + blockIdx.y * 32 * K;
  half const* gb = B + blockIdx.x * 32 * K;
  auto load = [&](int stage, int k0) {
    int row = t % 128 / 4, col = t % 4 * 8;
    if (t < 128)
      __pipeline_memcpy_async(&sa[stage][row][col], ga + row * K + k0 + col, 16);
    else
      __pipeline_memcpy_async(&sb[stage][row][col], gb + row * K + k0 + col, 16);
    __pipeline_commit();
  };
  float acc[4] = {};
  load(0, 0);
  for (int k0 = 0, stage = 0; k0 < K; k0 += 32, stage ^= 1) {
    if (k0 + 32 < K) load(stage ^ 1, k0 + 32);
    __pipeline_wait_prior(k0 + 32 < K ? 1 : 0);
    __syncthreads();
    for (int kk = 0; kk < 32; kk += 16) {
      unsigned a[4], b[2];
      unsigned pa = __cvta_generic_to_shared(&sa[stage][wm + lane % 16][kk + lane / 16 * 8]);
      unsigned pb = __cvta_generic_to_shared(&sb[stage][wn + lane % 8][kk + lane / 8 % 2 * 8]);
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                   : "r"(pa));
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(b[0]), "=r"(b[1]) : "r"(pb));
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    __syncthreads();
  }
  float* c = C + (blockIdx.y * 32 + wm + lane / 4) * N + blockIdx.x * 32 + wn + lane % 4 * 2;
  c[0] = acc[0];
  c[1] = acc[1];
  c[8 * N] = acc[2];
  c[8 * N + 1] = acc[3];
}

// Plain fragments from global memory: int8 m16n8k32 and bf16 m16n8k16, f16 accumulators m16n8k8.
__global__ void small_kernel(int8_t const* a8, int8_t const* b8, int* c8, __nv_bfloat16 const* ab,
                             __nv_bfloat16 const* bb, float* cb, half const* ah, half const* bh, half* ch) {
  int l = threadIdx.x, g = l / 4, t = l % 4;
  unsigned const* A = (unsigned const*)a8;  // 16 x 32 bytes
  unsigned const* B = (unsigned const*)b8;  // 8 x 32 bytes (column major)
  int c[4] = {1, 2, 3, 4};
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(A[g * 8 + t]), "r"(A[(g + 8) * 8 + t]), "r"(A[g * 8 + 4 + t]), "r"(A[(g + 8) * 8 + 4 + t]),
                 "r"(B[g * 8 + t]), "r"(B[g * 8 + 4 + t]));
  c8[g * 8 + t * 2] = c[0] - 1;
  c8[g * 8 + t * 2 + 1] = c[1] - 2;
  c8[(g + 8) * 8 + t * 2] = c[2] - 3;
  c8[(g + 8) * 8 + t * 2 + 1] = c[3] - 4;
  unsigned const* P = (unsigned const*)ab;  // 16 x 16 bf16
  unsigned const* Q = (unsigned const*)bb;  // 8 x 16
  float f[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(f[0]), "+f"(f[1]), "+f"(f[2]), "+f"(f[3])
      : "r"(P[g * 8 + t]), "r"(P[(g + 8) * 8 + t]), "r"(P[g * 8 + 4 + t]), "r"(P[(g + 8) * 8 + 4 + t]),
        "r"(Q[g * 8 + t]), "r"(Q[g * 8 + 4 + t]));
  cb[g * 8 + t * 2] = f[0];
  cb[g * 8 + t * 2 + 1] = f[1];
  cb[(g + 8) * 8 + t * 2] = f[2];
  cb[(g + 8) * 8 + t * 2 + 1] = f[3];
  unsigned const* R = (unsigned const*)ah;  // 16 x 8 f16
  unsigned const* S = (unsigned const*)bh;  // 8 x 8
  unsigned h[2] = {0, 0};
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3}, {%4}, {%0,%1};"
               : "+r"(h[0]), "+r"(h[1])
               : "r"(R[g * 4 + t]), "r"(R[(g + 8) * 4 + t]), "r"(S[g * 4 + t]));
  ((unsigned*)ch)[g * 4 + t] = h[0];
  ((unsigned*)ch)[(g + 8) * 4 + t] = h[1];
}

// movmatrix: every warp transposes one 8x8 matrix; the second time in place, which gives the input again.
__global__ void transpose_kernel(unsigned const* in, unsigned* once, unsigned* twice) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  unsigned v = in[i], t;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(v));
  once[i] = t;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(t));
  twice[i] = t;
}

__global__ void wmma_kernel(half const* a, half const* b, float* c) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 16, half, row_major> fa;
  fragment<matrix_b, 16, 16, 16, half, col_major> fb;
  fragment<accumulator, 16, 16, 16, float> fc;
  fill_fragment(fc, 1.0f);
  load_matrix_sync(fa, a, 16);
  load_matrix_sync(fb, b, 16);
  mma_sync(fc, fa, fb, fc);
  store_matrix_sync(c, fc, 16, mem_row_major);
}

// y += W x with 4-bit weights and a 16-entry table; halves of K in different blocks, joined by fp16 atomics.
__global__ void lut_kernel(unsigned const* w, half const* table, half const* x, half2* y, int rows, int K) {
  __shared__ half lut[16];
  if (threadIdx.x < 16) lut[threadIdx.x] = table[threadIdx.x];
  __syncthreads();
  int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  half2 sum = __float2half2_rn(0.0f);
  int half_k = K / gridDim.y, k0 = blockIdx.y * half_k;
  for (int k = k0 + lane * 8; k < k0 + half_k; k += 256) {
    unsigned q = w[(row * K + k) / 8];
    for (int i = 0; i < 4; ++i) {
      half2 v = __halves2half2(lut[q >> (8 * i) & 15], lut[q >> (8 * i + 4) & 15]);
      sum = __hfma2(v, *(half2 const*)(x + k + 2 * i), sum);
    }
  }
  for (int o = 16; o; o >>= 1) sum = __hadd2(sum, __shfl_xor_sync(~0u, sum, o));
  if (lane == 0) atomicAdd(&y[row], sum);
}

int main() {
  std::mt19937 rng(3);
  auto small = [&] { return float(int(rng() % 17) - 8) / 4; };
  {
    int const M = 64, N = 96, K = 128;
    std::vector<half> a(M * K), b(N * K);
    for (auto& v : a) v = __float2half(small());
    for (auto& v : b) v = __float2half(small());
    DeviceBuffer<half> da(a), db(b);
    DeviceBuffer<float> dc(M * N);
    gemm_kernel<<<dim3(N / 32, M / 32), 256>>>(da.ptr, db.ptr, dc.ptr, N, K);
    auto c = dc.host();
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) {
        float s = 0;
        for (int k = 0; k < K; ++k) s += __half2float(a[i * K + k]) * __half2float(b[j * K + k]);
        CHECK(c[i * N + j] == s);
      }
  }
  {
    std::vector<int8_t> a8(16 * 32), b8(8 * 32);
    for (auto& v : a8) v = int8_t(rng());
    for (auto& v : b8) v = int8_t(rng());
    std::vector<__nv_bfloat16> ab(16 * 16), bb(8 * 16);
    for (auto& v : ab) v = __float2bfloat16(small());
    for (auto& v : bb) v = __float2bfloat16(small());
    std::vector<half> ah(16 * 8), bh(8 * 8);
    for (auto& v : ah) v = __float2half(small());
    for (auto& v : bh) v = __float2half(small());
    DeviceBuffer<int8_t> da8(a8), db8(b8);
    DeviceBuffer<int> dc8(128);
    DeviceBuffer<__nv_bfloat16> dab(ab), dbb(bb);
    DeviceBuffer<float> dcb(128);
    DeviceBuffer<half> dah(ah), dbh(bh), dch(128);
    small_kernel<<<1, 32>>>(da8.ptr, db8.ptr, dc8.ptr, dab.ptr, dbb.ptr, dcb.ptr, dah.ptr, dbh.ptr, dch.ptr);
    auto c8 = dc8.host();
    auto cb = dcb.host();
    auto ch = dch.host();
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 8; ++j) {
        int s = 0;
        float f = 0, h = 0;
        for (int k = 0; k < 32; ++k) s += a8[i * 32 + k] * b8[j * 32 + k];
        for (int k = 0; k < 16; ++k) f += __bfloat162float(ab[i * 16 + k]) * __bfloat162float(bb[j * 16 + k]);
        for (int k = 0; k < 8; ++k) h += __half2float(ah[i * 8 + k]) * __half2float(bh[j * 8 + k]);
        CHECK(c8[i * 8 + j] == s);
        CHECK(cb[i * 8 + j] == f);
        CHECK(__half2float(ch[i * 8 + j]) == __half2float(__float2half(h)));
      }
  }
  {
    std::vector<uint16_t> m(4 * 64);
    for (auto& v : m) v = uint16_t(rng());
    std::vector<unsigned> packed(4 * 32);
    memcpy(packed.data(), m.data(), 4 * 128);
    DeviceBuffer<unsigned> di(packed), d1(128), d2(128);
    transpose_kernel<<<2, 64>>>(di.ptr, d1.ptr, d2.ptr);
    auto once = d1.host();
    for (int k = 0; k < 4; ++k)
      for (int r = 0; r < 8; ++r)
        for (int c = 0; c < 8; ++c) {
          unsigned v = once[k * 32 + r * 4 + c / 2];
          CHECK(uint16_t(c % 2 ? v >> 16 : v) == m[k * 64 + c * 8 + r]);
        }
    CHECK(d2.host() == packed);
  }
  {
    std::vector<half> a(256), b(256);
    for (auto& v : a) v = __float2half(small());
    for (auto& v : b) v = __float2half(small());
    DeviceBuffer<half> da(a), db(b);
    DeviceBuffer<float> dc(256);
    wmma_kernel<<<1, 32>>>(da.ptr, db.ptr, dc.ptr);
    auto c = dc.host();
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j) {
        float s = 1;
        for (int k = 0; k < 16; ++k) s += __half2float(a[i * 16 + k]) * __half2float(b[j * 16 + k]);
        CHECK(c[i * 16 + j] == s);
      }
  }
  {
    int const rows = 40, K = 1024;
    std::vector<unsigned> w(rows * K / 8);
    for (auto& v : w) v = rng();
    std::vector<half> table(16), x(K);
    for (int i = 0; i < 16; ++i) table[i] = __float2half((i - 8) / 8.0f);
    for (auto& v : x) v = __float2half(float(int(rng() % 3) - 1));
    DeviceBuffer<unsigned> dw(w);
    DeviceBuffer<half> dt(table), dx(x);
    DeviceBuffer<half2> dy(rows);
    dy.zero();
    lut_kernel<<<dim3(10, 2), 128>>>(dw.ptr, dt.ptr, dx.ptr, dy.ptr, rows, K);
    auto y = dy.host();
    for (int r = 0; r < rows; ++r) {
      float s = 0;
      for (int k = 0; k < K; ++k) s += __half2float(table[w[(r * K + k) / 8] >> (k % 8 * 4) & 15]) * __half2float(x[k]);
      CHECK(near(__half2float(y[r].x) + __half2float(y[r].y), s, 1e-2, 0.1));
    }
  }
  return finish("mma");
}
