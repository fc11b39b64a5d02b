// Arithmetic against the host: math functions, small formats, conversions, softmax, RoPE, integer intrinsics.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <algorithm>
#include <cstring>

#include "check.hpp"

__global__ void float_kernel(float const* x, float const* y, float* o, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float a = x[i], b = y[i];
  float* r = o + i * 24;
  r[0] = sinf(a);
  r[1] = cosf(a);
  r[2] = expf(a);
  r[3] = logf(fabsf(a));
  r[4] = powf(fabsf(a), b);
  r[5] = tanhf(a);
  r[6] = erff(a);
  r[7] = rsqrtf(fabsf(a));
  r[8] = sqrtf(fabsf(a));
  r[9] = a / b;
  r[10] = fmodf(a, b);
  r[11] = rintf(a);
  r[12] = floorf(a);
  r[13] = __expf(a);
  r[14] = __sinf(a);
  r[15] = __fdividef(a, b);
  r[16] = truncf(a);
  r[17] = fmaxf(a, b);
  r[18] = fminf(a, b);
  r[19] = fmaf(a, b, a);
  r[20] = __fadd_rz(a, b);
  r[21] = __fmul_ru(a, b);
  r[22] = copysignf(a, b);
  r[23] = exp2f(a);
}
__global__ void double_kernel(double const* x, double* o, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  double a = x[i];
  double* r = o + i * 8;
  r[0] = sin(a);
  r[1] = exp(a);
  r[2] = sqrt(fabs(a));
  r[3] = 1.0 / a;
  r[4] = log(fabs(a));
  r[5] = (double)(long long)a;
  r[6] = (double)(float)a;
  r[7] = fma(a, a, 1.0);
}
__global__ void half_kernel(half const* a, half const* b, half* o, __nv_bfloat16* ob, __nv_bfloat16 const* ab,
                            __nv_bfloat16 const* bb, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  half x = a[i], y = b[i];
  half* r = o + i * 10;
  r[0] = x + y;
  r[1] = x * y;
  r[2] = __hfma(x, y, x);
  r[3] = __hmax(x, y);
  r[4] = __hsub(x, y);
  r[5] = __hneg(x);
  r[6] = __habs(x);
  half2 p = __halves2half2(x, y), q = __hfma2(p, __halves2half2(y, y), p);
  r[7] = q.x;
  r[8] = q.y;
  r[9] = __hlt(x, y) ? x : __hdiv(x, y);
  __nv_bfloat16 u = ab[i], v = bb[i];
  __nv_bfloat16* s = ob + i * 4;
  s[0] = u + v;
  s[1] = u * v;
  s[2] = __hfma(u, v, u);
  s[3] = __hmin(u, v);
}
__global__ void convert_kernel(float const* x, int* oi, unsigned* ou, int8_t* o8, uint8_t* sat, half* oh,
                               __nv_bfloat16* ob, uint8_t* e4, uint8_t* e5, float* back, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  float a = x[i];
  oi[i] = (int)a;
  ou[i] = (unsigned)fabsf(a);
  o8[i] = (int8_t)(int)a;
  int v = __float2int_rn(a);
  asm("cvt.sat.u8.s32 %0, %1;" : "=r"(v) : "r"(v));
  sat[i] = (uint8_t)v;
  oh[i] = __float2half_rn(a);
  ob[i] = __float2bfloat16_rn(a);
  __nv_fp8_e4m3 p(a);
  __nv_fp8_e5m2 q(a);
  e4[i] = p.__x;
  e5[i] = q.__x;
  back[i] = float(p) + float(q);
}
__global__ void int_kernel(unsigned const* x, unsigned const* y, unsigned* o, int n) {
  int i = threadIdx.x;
  if (i >= n) return;
  unsigned a = x[i], b = y[i];
  unsigned* r = o + i * 20;
  r[0] = __popc(a);
  r[1] = __clz(a);
  r[2] = __brev(a);
  r[3] = __ffs(a);
  r[4] = __byte_perm(a, b, 0x5274);
  r[5] = __funnelshift_l(a, b, b & 31);
  r[6] = __mulhi((int)a, (int)b);
  r[7] = __umulhi(a, b);
  r[8] = __dp4a((int)a, (int)b, 5);
  r[9] = a / (b | 1);
  r[10] = (unsigned)((int)a % (int)(b | 1));
  r[11] = __usad(a, b, 7);
  r[12] = (a & b) | (~a & 0x55aa55aa) ^ b;
  r[13] = a >> (b & 31);
  r[14] = (unsigned)((int)a >> (b & 31));
  unsigned long long w = (unsigned long long)a << 32 | b;
  r[15] = (unsigned)(w / 1000003u);
  r[16] = (unsigned)__umul64hi(w, w ^ 0x123456789abcdefull);
  r[17] = __clzll(w >> 7);
  unsigned __int128 z = (unsigned __int128)w * w + w;
  r[18] = (unsigned)(z >> 96) ^ (unsigned)(z >> 40);
  r[19] = __vadd4(a, b) ^ __vabsdiffu4(a, b) ^ __vcmpgtu4(a, b);
}

__global__ void softmax_kernel(float const* in, float* out, int cols) {
  float const* x = in + blockIdx.x * cols;
  float m = -INFINITY, s = 0;
  for (int i = threadIdx.x; i < cols; i += 32) m = fmaxf(m, x[i]);
  for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
  for (int i = threadIdx.x; i < cols; i += 32) s += __expf(x[i] - m);
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  for (int i = threadIdx.x; i < cols; i += 32) out[blockIdx.x * cols + i] = __fdividef(__expf(x[i] - m), s);
}
__global__ void rope_kernel(float2* x, int dim, float base) {
  int pos = blockIdx.x, i = threadIdx.x;
  float s, c;
  sincosf(pos * powf(base, -2.0f * i / dim), &s, &c);
  float2 v = x[pos * dim / 2 + i];
  x[pos * dim / 2 + i] = make_float2(v.x * c - v.y * s, v.x * s + v.y * c);
}

int main() {
  std::mt19937 rng(1);
  std::uniform_real_distribution<float> dist(-20, 20);
  {
    int const n = 500;
    std::vector<float> x(n), y(n);
    for (auto& v : x) v = dist(rng);
    for (auto& v : y) v = dist(rng) / 5;
    DeviceBuffer<float> dx(x), dy(y), d(n * 24);
    float_kernel<<<4, 128>>>(dx.ptr, dy.ptr, d.ptr, n);
    auto o = d.host();
    for (int i = 0; i < n; ++i) {
      float a = x[i], b = y[i];
      float const* r = &o[i * 24];
      double want[24] = {std::sin((double)a),
                         std::cos((double)a),
                         std::exp((double)a),
                         std::log(std::fabs((double)a)),
                         std::pow(std::fabs((double)a), (double)b),
                         std::tanh((double)a),
                         std::erf((double)a),
                         1 / std::sqrt(std::fabs((double)a)),
                         std::sqrt(std::fabs((double)a)),
                         a / b,
                         std::fmod(a, b),
                         std::rint(a),
                         std::floor(a),
                         std::exp((double)a),
                         std::sin((double)a),
                         a / b,
                         std::trunc(a),
                         std::fmax(a, b),
                         std::fmin(a, b),
                         std::fmaf(a, b, a),
                         a + b,
                         a * b,
                         std::copysign(a, b),
                         std::exp2((double)a)};
      for (int k = 0; k < 24; ++k) {
        bool ok = near(r[k], want[k], 2e-6, k == 14 ? 1e-4 : 1e-6);
        if (!ok) std::printf("float op %d: x=%g y=%g got %.9g want %.9g\n", k, a, b, r[k], want[k]);
        CHECK(ok);
      }
      CHECK(r[9] == a / b && r[8] == std::sqrt(std::fabs(a)) && r[19] == std::fmaf(a, b, a));
      CHECK(std::fabs(r[20]) <= std::fabs((double)a + b) && r[21] >= (double)a * b);
    }
  }
  {
    std::vector<double> x(64);
    for (auto& v : x) v = dist(rng);
    DeviceBuffer<double> dx(x), d(64 * 8);
    double_kernel<<<1, 64>>>(dx.ptr, d.ptr, 64);
    auto o = d.host();
    for (int i = 0; i < 64; ++i) {
      double a = x[i],
             want[8] = {std::sin(a),          std::exp(a),      std::sqrt(std::fabs(a)), 1 / a, std::log(std::fabs(a)),
                        (double)(long long)a, (double)(float)a, std::fma(a, a, 1.0)};
      for (int k = 0; k < 8; ++k) CHECK(near(o[i * 8 + k], want[k], 1e-14, 1e-15));
    }
  }
  {
    int const n = 256;
    std::vector<half> a(n), b(n);
    std::vector<__nv_bfloat16> ab(n), bb(n);
    for (int i = 0; i < n; ++i) {
      a[i] = __float2half(dist(rng));
      b[i] = __float2half(dist(rng));
      ab[i] = __float2bfloat16(dist(rng));
      bb[i] = __float2bfloat16(dist(rng));
    }
    DeviceBuffer<half> da(a), db(b), d(n * 10);
    DeviceBuffer<__nv_bfloat16> dab(ab), dbb(bb), dbo(n * 4);
    half_kernel<<<1, n>>>(da.ptr, db.ptr, d.ptr, dbo.ptr, dab.ptr, dbb.ptr, n);
    auto o = d.host();
    auto ob = dbo.host();
    for (int i = 0; i < n; ++i) {
      float x = __half2float(a[i]), y = __half2float(b[i]);
      double want[10] = {x + y, x * y,        (double)x * y + x, std::fmax(x, y),   x - y,
                         -x,    std::fabs(x), (double)x * y + x, (double)y * y + y, x < y ? x : x / y};
      for (int k = 0; k < 10; ++k) {
        float w = __half2float(__double2half(want[k])), g = __half2float(o[i * 10 + k]);
        CHECK(k == 9 ? near(g, w, 1e-3) : g == w);
      }
      float u = __bfloat162float(ab[i]), v = __bfloat162float(bb[i]);
      double wb[4] = {u + v, u * v, (double)u * v + u, std::fmin(u, v)};
      for (int k = 0; k < 4; ++k) CHECK(__bfloat162float(ob[i * 4 + k]) == __bfloat162float(__double2bfloat16(wb[k])));
    }
  }
  {
    int const n = 256;
    std::vector<float> x(n);
    for (int i = 0; i < n; ++i) x[i] = dist(rng) * std::pow(2.0f, float(i % 24 - 12));
    x[0] = 300.7f;
    x[1] = -300.2f;
    x[2] = 1e10f;
    x[3] = -1e10f;
    x[4] = 0.5f;
    x[5] = 1.5f;
    x[6] = 2.5f;
    x[7] = -0.0f;
    x[8] = 65520.0f;
    x[9] = 3e-8f;
    DeviceBuffer<float> dx(x), back(n);
    DeviceBuffer<int> oi(n);
    DeviceBuffer<unsigned> ou(n);
    DeviceBuffer<int8_t> o8(n);
    DeviceBuffer<uint8_t> sat(n), e4(n), e5(n);
    DeviceBuffer<half> oh(n);
    DeviceBuffer<__nv_bfloat16> ob(n);
    convert_kernel<<<1, n>>>(dx.ptr, oi.ptr, ou.ptr, o8.ptr, sat.ptr, oh.ptr, ob.ptr, e4.ptr, e5.ptr, back.ptr, n);
    auto vi = oi.host();
    auto vu = ou.host();
    auto v8 = o8.host();
    auto vs = sat.host(), v4 = e4.host(), v5 = e5.host();
    auto vh = oh.host();
    auto vb = ob.host();
    auto vback = back.host();
    for (int i = 0; i < n; ++i) {
      double a = x[i];
      int wi = a >= 2147483647.0 ? INT32_MAX : a <= -2147483648.0 ? INT32_MIN : (int)a;
      CHECK(vi[i] == wi);
      CHECK(vu[i] == (std::fabs(a) >= 4294967295.0 ? ~0u : (unsigned)std::fabs(a)));
      CHECK(v8[i] == (int8_t)wi);
      double rn = std::nearbyint(a);
      CHECK(vs[i] == (rn < 0 ? 0 : rn > 255 ? 255 : (int)rn));
      CHECK(__half_as_ushort(vh[i]) == __half_as_ushort(__float2half_rn(x[i])));
      CHECK(__bfloat16_as_ushort(vb[i]) == __bfloat16_as_ushort(__float2bfloat16_rn(x[i])));
      __nv_fp8_e4m3 p(x[i]);
      __nv_fp8_e5m2 q(x[i]);
      CHECK(v4[i] == p.__x && v5[i] == q.__x && vback[i] == float(p) + float(q));
    }
  }
  {
    int const n = 256;
    std::vector<unsigned> x(n), y(n);
    for (int i = 0; i < n; ++i) x[i] = rng() >> (i % 32), y[i] = rng() >> (i % 29);
    DeviceBuffer<unsigned> dx(x), dy(y), d(n * 20);
    int_kernel<<<1, n>>>(dx.ptr, dy.ptr, d.ptr, n);
    auto o = d.host();
    for (int i = 0; i < n; ++i) {
      unsigned a = x[i], b = y[i];
      unsigned const* r = &o[i * 20];
      unsigned rev = 0, perm = 0, sel[4] = {4, 7, 2, 5};
      for (int k = 0; k < 32; ++k) rev |= (a >> k & 1) << (31 - k);
      unsigned long long ab = (unsigned long long)b << 32 | a;
      for (int k = 0; k < 4; ++k) perm |= unsigned(ab >> (8 * sel[k]) & 255) << (8 * k);
      int dot = 5;
      unsigned va = 0, vd = 0, vc = 0;
      for (int k = 0; k < 4; ++k) {
        unsigned p = a >> (8 * k) & 255, q = b >> (8 * k) & 255;
        dot += int8_t(p) * int8_t(q);
        va |= ((p + q) & 255) << (8 * k);
        vd |= (p > q ? p - q : q - p) << (8 * k);
        vc |= (p > q ? 255u : 0u) << (8 * k);
      }
      unsigned long long w = (unsigned long long)a << 32 | b;
      unsigned __int128 z = (unsigned __int128)w * w + w;
      unsigned want[20] = {(unsigned)__builtin_popcount(a),
                           a ? (unsigned)__builtin_clz(a) : 32,
                           rev,
                           (unsigned)__builtin_ffs(a),
                           perm,
                           (unsigned)((((unsigned long long)b << 32 | a) << (b & 31)) >> 32),
                           (unsigned)((long long)(int)a * (int)b >> 32),
                           (unsigned)((unsigned long long)a * b >> 32),
                           (unsigned)dot,
                           a / (b | 1),
                           (unsigned)((int)a % (int)(b | 1)),
                           (a > b ? a - b : b - a) + 7,
                           (a & b) | ((~a & 0x55aa55aa) ^ b),
                           a >> (b & 31),
                           (unsigned)((int)a >> (b & 31)),
                           (unsigned)(w / 1000003u),
                           (unsigned)((unsigned __int128)w * (w ^ 0x123456789abcdefull) >> 64),
                           w >> 7 ? (unsigned)__builtin_clzll(w >> 7) : 64,
                           (unsigned)(z >> 96) ^ (unsigned)(z >> 40),
                           va ^ vd ^ vc};
      for (int k = 0; k < 20; ++k) {
        if (r[k] != want[k]) std::printf("int op %d: a=%08x b=%08x got %08x want %08x\n", k, a, b, r[k], want[k]);
        CHECK(r[k] == want[k]);
      }
    }
  }
  {
    int const rows = 5, cols = 333;
    std::vector<float> x(rows * cols);
    for (auto& v : x) v = dist(rng);
    DeviceBuffer<float> dx(x), d(rows * cols);
    softmax_kernel<<<rows, 32>>>(dx.ptr, d.ptr, cols);
    auto o = d.host();
    for (int r = 0; r < rows; ++r) {
      double m = -1e30, s = 0;
      for (int i = 0; i < cols; ++i) m = std::max<double>(m, x[r * cols + i]);
      for (int i = 0; i < cols; ++i) s += std::exp(x[r * cols + i] - m);
      for (int i = 0; i < cols; ++i) CHECK(near(o[r * cols + i], std::exp(x[r * cols + i] - m) / s, 1e-5));
    }
  }
  {
    int const pos = 300, dim = 64;
    std::vector<float2> x(pos * dim / 2);
    for (auto& v : x) v = make_float2(dist(rng), dist(rng));
    DeviceBuffer<float2> d(x);
    rope_kernel<<<pos, dim / 2>>>(d.ptr, dim, 10000.0f);
    auto o = d.host();
    for (int p = 0; p < pos; ++p)
      for (int i = 0; i < dim / 2; ++i) {
        double t = p * (double)std::pow(10000.0, -2.0 * i / dim);
        float2 v = x[p * dim / 2 + i], g = o[p * dim / 2 + i];
        CHECK(near(g.x, v.x * std::cos(t) - v.y * std::sin(t), 1e-3, 3e-3) &&
              near(g.y, v.x * std::sin(t) + v.y * std::cos(t), 1e-3, 3e-3));
      }
  }
  return finish("math");
}
