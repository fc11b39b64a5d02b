// Arithmetic, logic, comparison, selection and moves.
#include <algorithm>
#include <cfenv>

#include "decode.hpp"
#include "fp.hpp"

namespace ptxrun {

namespace {

// ---------------------------------------------------------------------------------------------
// Lane loops

template <auto F, class D, class A>
void un(Warp& w, Inst const& in, uint32_t m) {
  D* d = w.at<D>(in.d);
  A const* a = w.at<A>(in.a);
  for_lanes(m, [&](int l) { d[l] = F(a[l]); });
}
template <auto F, class D, class A, class B>
void bin(Warp& w, Inst const& in, uint32_t m) {
  D* d = w.at<D>(in.d);
  A const* a = w.at<A>(in.a);
  B const* b = w.at<B>(in.b);
  for_lanes(m, [&](int l) { d[l] = F(a[l], b[l]); });
}
template <auto F, class D, class A, class B, class C>
void tern(Warp& w, Inst const& in, uint32_t m) {
  D* d = w.at<D>(in.d);
  A const* a = w.at<A>(in.a);
  B const* b = w.at<B>(in.b);
  C const* c = w.at<C>(in.c);
  for_lanes(m, [&](int l) { d[l] = F(a[l], b[l], c[l]); });
}

// ---------------------------------------------------------------------------------------------
// Integer

template <class X>
using Wide =
    std::conditional_t<sizeof(X) == 2, std::conditional_t<std::is_signed_v<X>, int32_t, uint32_t>,
                       std::conditional_t<sizeof(X) == 4, std::conditional_t<std::is_signed_v<X>, int64_t, uint64_t>,
                                          std::conditional_t<std::is_signed_v<X>, __int128, unsigned __int128>>>;
template <class X>
using Uns = std::make_unsigned_t<X>;

template <class X>
X mul_lo(X a, X b) {
  return X(Wide<X>(a) * Wide<X>(b));
}
template <class X>
X mul_hi(X a, X b) {
  return X((Wide<X>(a) * Wide<X>(b)) >> (8 * sizeof(X)));
}
template <class X>
X idiv(X a, X b) {
  if (b == 0) return X(~X(0));
  if (std::is_signed_v<X> && b == X(-1)) return X(Uns<X>(0) - Uns<X>(a));
  return X(a / b);
}
template <class X>
X irem(X a, X b) {
  if (b == 0) return a;
  if (std::is_signed_v<X> && b == X(-1)) return 0;
  return X(a % b);
}

template <class X>
Handler int_op(std::string_view op) {
  using U = Uns<X>;
  if (op == "add") return bin<[](X a, X b) { return X(U(a) + U(b)); }, X, X, X>;
  if (op == "sub") return bin<[](X a, X b) { return X(U(a) - U(b)); }, X, X, X>;
  if (op == "div") return bin<[](X a, X b) { return idiv(a, b); }, X, X, X>;
  if (op == "rem") return bin<[](X a, X b) { return irem(a, b); }, X, X, X>;
  if (op == "min") return bin<[](X a, X b) { return std::min(a, b); }, X, X, X>;
  if (op == "max") return bin<[](X a, X b) { return std::max(a, b); }, X, X, X>;
  if (op == "mul.lo") return bin<[](X a, X b) { return X(U(a) * Wide<U>(U(b))); }, X, X, X>;
  if (op == "mul.hi") return bin<[](X a, X b) { return mul_hi(a, b); }, X, X, X>;
  if (op == "mad.lo") return tern<[](X a, X b, X c) { return X(U(U(a) * Wide<U>(U(b))) + U(c)); }, X, X, X, X>;
  if (op == "mad.hi") return tern<[](X a, X b, X c) { return X(U(mul_hi(a, b)) + U(c)); }, X, X, X, X>;
  if (op == "sad") return tern<[](X a, X b, X c) { return X(U(c) + (a < b ? U(b) - U(a) : U(a) - U(b))); }, X, X, X, X>;
  if (op == "abs") return un<[](X a) { return a < 0 ? X(U(0) - U(a)) : a; }, X, X>;
  if (op == "neg") return un<[](X a) { return X(U(0) - U(a)); }, X, X>;
  if (op == "shr")
    return bin<[](X a, uint32_t n) { return n >= 8 * sizeof(X) ? X(a < 0 ? -1 : 0) : X(a >> n); }, X, X, uint32_t>;
  if (op == "slct") return nullptr;
  return nullptr;
}
template <class X>
X mul24(X a, X b) {
  return X(int64_t(X(uint32_t(a) << 8) >> 8) * int64_t(X(uint32_t(b) << 8) >> 8));
}
template <class X>
X mad24(X a, X b, X c) {
  return X(uint32_t(mul24(a, b)) + uint32_t(c));
}
template <class X>
Handler wide_op(std::string_view op) {
  using W = Wide<X>;
  if (op == "mul.wide") return bin<[](X a, X b) { return W(W(a) * W(b)); }, W, X, X>;
  return tern<[](X a, X b, W c) { return W(std::make_unsigned_t<W>(W(a) * W(b)) + std::make_unsigned_t<W>(c)); }, W, X,
              X, W>;
}
template <class U>
Handler bit_op(std::string_view op) {
  if (op == "and") return bin<[](U a, U b) { return U(a & b); }, U, U, U>;
  if (op == "or") return bin<[](U a, U b) { return U(a | b); }, U, U, U>;
  if (op == "xor") return bin<[](U a, U b) { return U(a ^ b); }, U, U, U>;
  if (op == "not") return un<[](U a) { return U(~a); }, U, U>;
  if (op == "cnot") return un<[](U a) { return U(a == 0); }, U, U>;
  if (op == "shl") return bin<[](U a, uint32_t n) { return n >= 8 * sizeof(U) ? U(0) : U(a << n); }, U, U, uint32_t>;
  if (op == "mov") return un<[](U a) { return a; }, U, U>;
  return nullptr;
}
template <class U>
Handler count_op(std::string_view op) {
  if (op == "popc") return un<[](U a) { return uint32_t(std::popcount(a)); }, uint32_t, U>;
  if (op == "clz") return un<[](U a) { return uint32_t(std::countl_zero(a)); }, uint32_t, U>;
  if (op == "brev")
    return un<[](U a) {
      U r = 0;
      for (size_t i = 0; i < 8 * sizeof(U); ++i) r |= U(a >> i & 1) << (8 * sizeof(U) - 1 - i);
      return r;
    },
              U, U>;
  return nullptr;
}
template <class X, bool Shift>
uint32_t bfind(X a) {
  using U = Uns<X>;
  U u = U(a < 0 ? ~a : a);
  if (!u) return ~0u;
  uint32_t pos = uint32_t(8 * sizeof(X) - 1 - std::countl_zero(u));
  return Shift ? uint32_t(8 * sizeof(X) - 1) - pos : pos;
}
template <class X>
X bfe(X a, uint32_t pos, uint32_t len) {
  constexpr uint32_t n = 8 * sizeof(X);
  pos &= 255;
  len &= 255;
  if (len == 0) return 0;
  uint32_t sign_at = std::min(pos + len - 1, n - 1);
  bool sign = std::is_signed_v<X> && (Uns<X>(a) >> sign_at & 1);
  Uns<X> v = pos >= n ? 0 : Uns<X>(a) >> pos;
  uint32_t have = pos >= n ? 0 : std::min(len, n - pos);
  Uns<X> keep = have >= n ? ~Uns<X>(0) : (Uns<X>(1) << have) - 1;
  v &= keep;
  return X(sign ? v | ~keep : v);
}
template <class U>
U bfi(U a, U b, uint32_t pos, uint32_t len) {
  constexpr uint32_t n = 8 * sizeof(U);
  pos &= 255;
  len &= 255;
  if (pos >= n || len == 0) return b;
  len = std::min(len, n - pos);
  U keep = (len >= n ? ~U(0) : (U(1) << len) - 1) << pos;
  return (b & ~keep) | ((a << pos) & keep);
}
template <class U>
void h_bfi(Warp& w, Inst const& in, uint32_t m) {
  U *d = w.at<U>(in.d), *a = w.at<U>(in.a), *b = w.at<U>(in.b);
  auto *p = w.at<uint32_t>(in.c), *n = w.at<uint32_t>(w.prog->extra[in.x0]);
  for_lanes(m, [&](int l) { d[l] = bfi<U>(a[l], b[l], p[l], n[l]); });
}

uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t lut) {
  uint32_t r = 0;
  if (lut & 1) r |= ~a & ~b & ~c;
  if (lut & 2) r |= ~a & ~b & c;
  if (lut & 4) r |= ~a & b & ~c;
  if (lut & 8) r |= ~a & b & c;
  if (lut & 16) r |= a & ~b & ~c;
  if (lut & 32) r |= a & ~b & c;
  if (lut & 64) r |= a & b & ~c;
  if (lut & 128) r |= a & b & c;
  return r;
}
void h_lop3(Warp& w, Inst const& in, uint32_t m) {
  auto *d = w.at<uint32_t>(in.d), *a = w.at<uint32_t>(in.a), *b = w.at<uint32_t>(in.b), *c = w.at<uint32_t>(in.c);
  uint32_t lut = in.aux;
  for_lanes(m, [&](int l) { d[l] = lop3(a[l], b[l], c[l], lut); });
}

template <bool Left, bool Clamp>
uint32_t funnel(uint32_t lo, uint32_t hi, uint32_t n) {
  n = Clamp ? std::min(n, 32u) : n & 31;
  uint64_t v = uint64_t(hi) << 32 | lo;
  return Left ? (n == 32 ? lo : uint32_t((v << n) >> 32)) : uint32_t(n == 32 ? hi : v >> n);
}

uint32_t prmt(uint32_t a, uint32_t b, uint32_t sel, int mode) {
  uint64_t v = uint64_t(b) << 32 | a;
  auto byte = [&](uint32_t i) { return uint32_t(v >> (8 * (i & 7)) & 255); };
  uint32_t r = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    uint32_t x = 0, s = sel & 3;
    switch (mode) {
      case 0: {
        uint32_t n = sel >> (4 * i) & 15;
        x = byte(n);
        if (n & 8) x = x & 0x80 ? 255 : 0;
        break;
      }
      case 1: x = byte(s + i); break;                   // f4e
      case 2: x = byte((s - i) & 7); break;             // b4e
      case 3: x = byte(s); break;                       // rc8
      case 4: x = byte(std::max(s, i)); break;          // ecl
      case 5: x = byte(std::min(s, i)); break;          // ecr
      default: x = byte((s & 1) * 2 + (i & 1)); break;  // rc16
    }
    r |= x << (8 * i);
  }
  return r;
}
void h_prmt(Warp& w, Inst const& in, uint32_t m) {
  auto *d = w.at<uint32_t>(in.d), *a = w.at<uint32_t>(in.a), *b = w.at<uint32_t>(in.b), *c = w.at<uint32_t>(in.c);
  int mode = in.aux;
  for_lanes(m, [&](int l) { d[l] = prmt(a[l], b[l], c[l], mode); });
}

// dp4a / dp2a: aux bit 0: a signed, bit 1: b signed; aux2: 4 = dp4a, 0 = dp2a.lo, 1 = dp2a.hi
void h_dp(Warp& w, Inst const& in, uint32_t m) {
  auto *d = w.at<uint32_t>(in.d), *a = w.at<uint32_t>(in.a), *b = w.at<uint32_t>(in.b), *c = w.at<uint32_t>(in.c);
  bool sa = in.aux & 1, sb = in.aux & 2;
  for_lanes(m, [&](int l) {
    uint32_t r = c[l];
    if (in.aux2 == 4) {
      for (int i = 0; i < 4; ++i) {
        uint32_t x = a[l] >> (8 * i) & 255, y = b[l] >> (8 * i) & 255;
        r += uint32_t((sa ? int32_t(int8_t(x)) : int32_t(x)) * (sb ? int32_t(int8_t(y)) : int32_t(y)));
      }
    } else {
      for (int i = 0; i < 2; ++i) {
        uint32_t x = a[l] >> (16 * i) & 0xffff, y = b[l] >> (8 * (i + 2 * in.aux2)) & 255;
        r += uint32_t((sa ? int32_t(int16_t(x)) : int32_t(x)) * (sb ? int32_t(int8_t(y)) : int32_t(y)));
      }
    }
    d[l] = r;
  });
}

// add/sub/mad with carry. aux bit 0: carry in, bit 1: carry out; aux2: 0 add, 1 sub, 2 mad.lo, 3 mad.hi
template <class X>
void h_carry(Warp& w, Inst const& in, uint32_t m) {
  using U = Uns<X>;
  U *d = w.at<U>(in.d), *a = w.at<U>(in.a), *b = w.at<U>(in.b);
  Ref const* x = &w.prog->extra[in.x0];
  uint32_t cc = w.pred(x[0]), out = cc;
  U* c = in.c != kNoRef ? w.at<U>(in.c) : nullptr;
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    U p = a[l], q = b[l];
    if (in.aux2 >= 2) {
      p = in.aux2 == 2 ? U(mul_lo<X>(X(a[l]), X(b[l]))) : U(mul_hi<X>(X(a[l]), X(b[l])));
      q = c[l];
    }
    bool cin = in.aux & 1 ? cc >> l & 1 : false, cout;
    U r;
    if (in.aux2 == 1) {
      r = p - q - cin;
      cout = Wide<U>(p) < Wide<U>(q) + cin;
    } else {
      Wide<U> s = Wide<U>(p) + q + cin;
      r = U(s);
      cout = (s >> (8 * sizeof(U))) != 0;
    }
    d[l] = r;
    if (in.aux & 2) out = (out & ~(1u << l)) | uint32_t(cout) << l;
  }
  if (in.aux & 2) w.pred(x[1]) = out;
}

// SIMD-in-word video instructions; aux: operation, aux2: 2 or 4 parts; flags: kSat saturate, kHasC accumulate
enum { kVAdd, kVSub, kVAbsDiff, kVMin, kVMax, kVAvg };
void h_video(Warp& w, Inst const& in, uint32_t m) {
  auto *d = w.at<uint32_t>(in.d), *a = w.at<uint32_t>(in.a), *b = w.at<uint32_t>(in.b), *c = w.at<uint32_t>(in.c);
  int parts = in.aux2, bits = 32 / parts;
  bool ds = in.imm & 1, as = in.imm & 2, bs = in.imm & 4;
  auto get = [&](uint32_t v, int i, bool s) -> int64_t {
    uint32_t x = v >> (i * bits) & ((1u << bits) - 1);
    return s ? int64_t(int32_t(x << (32 - bits)) >> (32 - bits)) : int64_t(x);
  };
  for_lanes(m, [&](int l) {
    uint32_t r = 0, sum = c[l];
    for (int i = 0; i < parts; ++i) {
      int64_t x = get(a[l], i, as), y = get(b[l], i, bs), v = 0;
      switch (in.aux) {
        case kVAdd: v = x + y; break;
        case kVSub: v = x - y; break;
        case kVAbsDiff: v = std::abs(x - y); break;
        case kVMin: v = std::min(x, y); break;
        case kVMax: v = std::max(x, y); break;
        case kVAvg: v = (x + y + (x + y >= 0)) >> 1; break;
      }
      if (in.flags & kSat) {
        int64_t lo = ds ? -(1ll << (bits - 1)) : 0, hi = ds ? (1ll << (bits - 1)) - 1 : (1ll << bits) - 1;
        v = std::clamp(v, lo, hi);
      }
      sum += uint32_t(v);
      r |= (uint32_t(v) & ((1u << bits) - 1)) << (i * bits);
    }
    d[l] = in.flags & kHasC ? sum : r;
  });
}

// ---------------------------------------------------------------------------------------------
// Floating point

template <class T>
T fmin_(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T fmax_(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}
template <class T>
T fmin_nan(T a, T b) {
  return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : fmin_(a, b);
}
template <class T>
T fmax_nan(T a, T b) {
  return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : fmax_(a, b);
}

template <bool Z, class T>
T fz(T x) {
  if constexpr (Z && std::is_same_v<T, float>)
    return flush(x);
  else
    return x;
}

template <class T, bool Z>
Handler float_op(std::string_view op) {
  if (op == "add") return bin<[](T a, T b) { return fz<Z>(fz<Z>(a) + fz<Z>(b)); }, T, T, T>;
  if (op == "sub") return bin<[](T a, T b) { return fz<Z>(fz<Z>(a) - fz<Z>(b)); }, T, T, T>;
  if (op == "mul") return bin<[](T a, T b) { return fz<Z>(fz<Z>(a) * fz<Z>(b)); }, T, T, T>;
  if (op == "div") return bin<[](T a, T b) { return fz<Z>(fz<Z>(a) / fz<Z>(b)); }, T, T, T>;
  if (op == "min") return bin<[](T a, T b) { return fmin_(fz<Z>(a), fz<Z>(b)); }, T, T, T>;
  if (op == "max") return bin<[](T a, T b) { return fmax_(fz<Z>(a), fz<Z>(b)); }, T, T, T>;
  if (op == "min.NaN") return bin<[](T a, T b) { return fmin_nan(fz<Z>(a), fz<Z>(b)); }, T, T, T>;
  if (op == "max.NaN") return bin<[](T a, T b) { return fmax_nan(fz<Z>(a), fz<Z>(b)); }, T, T, T>;
  if (op == "copysign") return bin<[](T a, T b) { return std::copysign(b, a); }, T, T, T>;
  if (op == "fma" || op == "mad")
    return tern<[](T a, T b, T c) { return fz<Z>(std::fma(fz<Z>(a), fz<Z>(b), fz<Z>(c))); }, T, T, T, T>;
  if (op == "abs") return un<[](T a) { return fz<Z>(std::fabs(a)); }, T, T>;
  if (op == "neg") return un<[](T a) { return fz<Z>(-a); }, T, T>;
  if (op == "rcp") return un<[](T a) { return fz<Z>(T(1) / fz<Z>(a)); }, T, T>;
  if (op == "sqrt") return un<[](T a) { return fz<Z>(std::sqrt(fz<Z>(a))); }, T, T>;
  if (op == "rsqrt") return un<[](T a) { return fz<Z>(T(1) / std::sqrt(fz<Z>(a))); }, T, T>;
  if (op == "sin") return un<[](T a) { return fz<Z>(std::sin(fz<Z>(a))); }, T, T>;
  if (op == "cos") return un<[](T a) { return fz<Z>(std::cos(fz<Z>(a))); }, T, T>;
  if (op == "lg2") return un<[](T a) { return fz<Z>(std::log2(fz<Z>(a))); }, T, T>;
  if (op == "ex2") return un<[](T a) { return fz<Z>(std::exp2(fz<Z>(a))); }, T, T>;
  if (op == "tanh") return un<[](T a) { return fz<Z>(std::tanh(a)); }, T, T>;
  return nullptr;
}

// Directed rounding; aux2: operation, aux: rounding mode.
enum { kRAdd, kRSub, kRMul, kRFma, kRDiv, kRRcp, kRSqrt };
template <class T>
__attribute__((noinline)) void h_rounded(Warp& w, Inst const& in, uint32_t m) {
  T *d = w.at<T>(in.d), *a = w.at<T>(in.a), *b = w.at<T>(in.b), *c = w.at<T>(in.c);
  int old = std::fegetround();
  std::fesetround(in.aux == 1 ? FE_TOWARDZERO : in.aux == 2 ? FE_DOWNWARD : FE_UPWARD);
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    volatile T x = a[l], y = b[l], z = c[l], r = 0;
    if (in.flags & kFtz) {
      x = fz<true>(T(x));
      y = fz<true>(T(y));
      z = fz<true>(T(z));
    }
    switch (in.aux2) {
      case kRAdd: r = x + y; break;
      case kRSub: r = x - y; break;
      case kRMul: r = x * y; break;
      case kRFma: r = std::fma(T(x), T(y), T(z)); break;
      case kRDiv: r = x / y; break;
      case kRRcp: r = T(1) / x; break;
      case kRSqrt: r = std::sqrt(T(x)); break;
    }
    d[l] = in.flags & kFtz ? fz<true>(T(r)) : T(r);
  }
  std::fesetround(old);
}

// 16-bit formats: computed in float (exactly rounded once), fma in double.
template <class T>
Handler half_op(std::string_view op) {
  if (op == "add") return bin<[](T a, T b) { return T(float(a) + float(b)); }, T, T, T>;
  if (op == "sub") return bin<[](T a, T b) { return T(float(a) - float(b)); }, T, T, T>;
  if (op == "mul") return bin<[](T a, T b) { return T(float(a) * float(b)); }, T, T, T>;
  if (op == "min") return bin<[](T a, T b) { return T(fmin_(float(a), float(b))); }, T, T, T>;
  if (op == "max") return bin<[](T a, T b) { return T(fmax_(float(a), float(b))); }, T, T, T>;
  if (op == "min.NaN") return bin<[](T a, T b) { return T(fmin_nan(float(a), float(b))); }, T, T, T>;
  if (op == "max.NaN") return bin<[](T a, T b) { return T(fmax_nan(float(a), float(b))); }, T, T, T>;
  if (op == "fma")
    return tern<[](T a, T b, T c) { return T(double(float(a)) * double(float(b)) + double(float(c))); }, T, T, T, T>;
  if (op == "abs")
    return un<[](T a) {
      a.bits &= 0x7fff;
      return a;
    },
              T, T>;
  if (op == "neg")
    return un<[](T a) {
      a.bits ^= 0x8000;
      return a;
    },
              T, T>;
  if (op == "ex2") return un<[](T a) { return T(std::exp2(float(a))); }, T, T>;
  if (op == "tanh") return un<[](T a) { return T(std::tanh(float(a))); }, T, T>;
  return nullptr;
}
template <class T>
Handler pair_op(std::string_view op) {
  using P = Pair<T>;
  if (op == "add")
    return bin<[](P a, P b) { return P{T(float(a.lo) + float(b.lo)), T(float(a.hi) + float(b.hi))}; }, P, P, P>;
  if (op == "sub")
    return bin<[](P a, P b) { return P{T(float(a.lo) - float(b.lo)), T(float(a.hi) - float(b.hi))}; }, P, P, P>;
  if (op == "mul")
    return bin<[](P a, P b) { return P{T(float(a.lo) * float(b.lo)), T(float(a.hi) * float(b.hi))}; }, P, P, P>;
  if (op == "min")
    return bin<[](P a, P b) {
      return P{T(fmin_(float(a.lo), float(b.lo))), T(fmin_(float(a.hi), float(b.hi)))};
    },
               P, P, P>;
  if (op == "max")
    return bin<[](P a, P b) {
      return P{T(fmax_(float(a.lo), float(b.lo))), T(fmax_(float(a.hi), float(b.hi)))};
    },
               P, P, P>;
  if (op == "min.NaN")
    return bin<[](P a, P b) {
      return P{T(fmin_nan(float(a.lo), float(b.lo))), T(fmin_nan(float(a.hi), float(b.hi)))};
    },
               P, P, P>;
  if (op == "max.NaN")
    return bin<[](P a, P b) {
      return P{T(fmax_nan(float(a.lo), float(b.lo))), T(fmax_nan(float(a.hi), float(b.hi)))};
    },
               P, P, P>;
  if (op == "fma")
    return tern<[](P a, P b, P c) {
      return P{T(double(float(a.lo)) * double(float(b.lo)) + double(float(c.lo))),
               T(double(float(a.hi)) * double(float(b.hi)) + double(float(c.hi)))};
    },
                P, P, P, P>;
  if (op == "abs") return un<[](uint32_t a) { return a & 0x7fff7fff; }, uint32_t, uint32_t>;
  if (op == "neg") return un<[](uint32_t a) { return a ^ 0x80008000; }, uint32_t, uint32_t>;
  if (op == "ex2") return un<[](P a) { return P{T(std::exp2(float(a.lo))), T(std::exp2(float(a.hi)))}; }, P, P>;
  if (op == "tanh") return un<[](P a) { return P{T(std::tanh(float(a.lo))), T(std::tanh(float(a.hi)))}; }, P, P>;
  return nullptr;
}
template <class T>
Handler int_pair_op(std::string_view op) {
  using P = Pair<T>;
  if (op == "add") return bin<[](P a, P b) { return P{T(a.lo + b.lo), T(a.hi + b.hi)}; }, P, P, P>;
  if (op == "sub") return bin<[](P a, P b) { return P{T(a.lo - b.lo), T(a.hi - b.hi)}; }, P, P, P>;
  if (op == "min") return bin<[](P a, P b) { return P{std::min(a.lo, b.lo), std::min(a.hi, b.hi)}; }, P, P, P>;
  if (op == "max") return bin<[](P a, P b) { return P{std::max(a.lo, b.lo), std::max(a.hi, b.hi)}; }, P, P, P>;
  return nullptr;
}

// After-operations on the destination: .sat (clamp to [0,1], NaN -> 0) and .relu (negative, NaN kept).
template <class T>
T saturate(T x) {
  float f = float(x);
  if (!(f > 0.0f)) return T(0.0f);
  return f < 1.0f ? x : T(1.0f);
}
template <class T>
T rectify(T x) {
  if (float(x) < 0.0f) return T(0.0f);
  return x;
}
template <class T>
Pair<T> saturate2(Pair<T> p) {
  return {saturate(p.lo), saturate(p.hi)};
}
template <class T>
Pair<T> rectify2(Pair<T> p) {
  return {rectify(p.lo), rectify(p.hi)};
}
template <class T>
Handler post_op(bool relu) {
  return relu ? un<rectify<T>, T, T> : un<saturate<T>, T, T>;
}
template <class T>
Handler post_pair(bool relu) {
  return relu ? un<rectify2<T>, Pair<T>, Pair<T>> : un<saturate2<T>, Pair<T>, Pair<T>>;
}

// ---------------------------------------------------------------------------------------------
// Comparison

enum Cmp : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kEqu, kNeu, kLtu, kLeu, kGtu, kGeu, kNum, kNan, kCmpCount };
int parse_cmp(std::string_view s) {
  static const std::unordered_map<std::string_view, int> t = {
      {"eq", kEq},   {"ne", kNe},   {"lt", kLt},   {"le", kLe},   {"gt", kGt},   {"ge", kGe},
      {"lo", kLt},   {"ls", kLe},   {"hi", kGt},   {"hs", kGe},   {"equ", kEqu}, {"neu", kNeu},
      {"ltu", kLtu}, {"leu", kLeu}, {"gtu", kGtu}, {"geu", kGeu}, {"num", kNum}, {"nan", kNan}};
  auto it = t.find(s);
  return it == t.end() ? -1 : it->second;
}
template <int C, class T>
bool compare(T a, T b) {
  bool nan = false;
  if constexpr (std::is_floating_point_v<T>) nan = a != a || b != b;
  switch (C) {
    case kEq: return a == b;
    case kNe: return a != b && !nan;
    case kLt: return a < b;
    case kLe: return a <= b;
    case kGt: return a > b;
    case kGe: return a >= b;
    case kEqu: return a == b || nan;
    case kNeu: return a != b;
    case kLtu: return a < b || nan;
    case kLeu: return a <= b || nan;
    case kGtu: return a > b || nan;
    case kGeu: return a >= b || nan;
    case kNum: return !nan;
    default: return nan;
  }
}

void store_setp(Warp& w, Inst const& in, uint32_t m, uint32_t r) {
  uint32_t p = r, q = ~r;
  if (in.aux) {
    uint32_t c = w.pred(in.c);
    if (in.flags & kNegC) c = ~c;
    p = in.aux == 1 ? p & c : in.aux == 2 ? p | c : p ^ c;
    q = in.aux == 1 ? q & c : in.aux == 2 ? q | c : q ^ c;
  }
  uint32_t& d = w.pred(in.d);
  d = (d & ~m) | (p & m);
  if (in.d2 != kNoRef) {
    uint32_t& e = w.pred(in.d2);
    e = (e & ~m) | (q & m);
  }
}
template <int C, class T, class V>
void h_setp(Warp& w, Inst const& in, uint32_t m) {
  T const *a = w.at<T>(in.a), *b = w.at<T>(in.b);
  alignas(32) uint8_t t[kLanes];
  for (int l = 0; l < kLanes; ++l) t[l] = compare<C, V>(V(a[l]), V(b[l]));
  uint32_t r = 0;
  for (int l = 0; l < kLanes; ++l) r |= uint32_t(t[l]) << l;
  store_setp(w, in, m, r);
}
// f16x2 comparison into two predicates (low, high).
template <int C, class T>
void h_setp2(Warp& w, Inst const& in, uint32_t m) {
  auto *a = w.at<Pair<T>>(in.a), *b = w.at<Pair<T>>(in.b);
  uint32_t p = 0, q = 0;
  for (int l = 0; l < kLanes; ++l) {
    p |= uint32_t(compare<C, float>(a[l].lo, b[l].lo)) << l;
    q |= uint32_t(compare<C, float>(a[l].hi, b[l].hi)) << l;
  }
  if (in.aux) {
    uint32_t c = w.pred(in.c);
    if (in.flags & kNegC) c = ~c;
    p = in.aux == 1 ? p & c : in.aux == 2 ? p | c : p ^ c;
    q = in.aux == 1 ? q & c : in.aux == 2 ? q | c : q ^ c;
  }
  w.pred(in.d) = (w.pred(in.d) & ~m) | (p & m);
  if (in.d2 != kNoRef) w.pred(in.d2) = (w.pred(in.d2) & ~m) | (q & m);
}

template <class T, class V, bool Two, int... C>
Handler setp_table(int cmp, std::integer_sequence<int, C...>) {
  if constexpr (Two) {
    static const Handler t[] = {h_setp2<C, T>...};
    return t[cmp];
  } else {
    static const Handler t[] = {h_setp<C, T, V>...};
    return t[cmp];
  }
}
template <class T, class V = T, bool Two = false>
Handler setp_for(int cmp) {
  return setp_table<T, V, Two>(cmp, std::make_integer_sequence<int, kCmpCount>());
}
Handler setp_handler(Ty t, int cmp) {
  switch (t) {
    case Ty::U16:
    case Ty::B16: return setp_for<uint16_t>(cmp);
    case Ty::S16: return setp_for<int16_t>(cmp);
    case Ty::U32:
    case Ty::B32: return setp_for<uint32_t>(cmp);
    case Ty::S32: return setp_for<int32_t>(cmp);
    case Ty::U64:
    case Ty::B64: return setp_for<uint64_t>(cmp);
    case Ty::S64: return setp_for<int64_t>(cmp);
    case Ty::F32: return setp_for<float>(cmp);
    case Ty::F64: return setp_for<double>(cmp);
    case Ty::F16: return setp_for<F16, float>(cmp);
    case Ty::BF16: return setp_for<BF16, float>(cmp);
    case Ty::F16x2: return setp_for<F16, F16, true>(cmp);
    case Ty::BF16x2: return setp_for<BF16, BF16, true>(cmp);
    default: return nullptr;
  }
}

// set: predicate (in.a, and in.b for the high half) -> value; imm: value when true; aux: width, aux2: packed
void h_set_value(Warp& w, Inst const& in, uint32_t m) {
  uint32_t p = w.pred(in.a), q = in.b != kNoRef ? w.pred(in.b) : 0;
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    uint64_t v = p >> l & 1 ? in.imm : 0;
    if (in.aux2) v = (p >> l & 1 ? in.imm & 0xffff : 0) | (q >> l & 1 ? in.imm << 16 : 0);
    if (in.aux == 2)
      w.at<uint16_t>(in.d)[l] = uint16_t(v);
    else if (in.aux == 4)
      w.at<uint32_t>(in.d)[l] = uint32_t(v);
    else
      w.at<uint64_t>(in.d)[l] = v;
  }
}

template <class U>
void h_selp(Warp& w, Inst const& in, uint32_t m) {
  U *d = w.at<U>(in.d), *a = w.at<U>(in.a), *b = w.at<U>(in.b);
  uint32_t p = w.pred(in.c);
  if (in.flags & kNegC) p = ~p;
  for_lanes(m, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}
template <class U, class C>
void h_slct(Warp& w, Inst const& in, uint32_t m) {
  U *d = w.at<U>(in.d), *a = w.at<U>(in.a), *b = w.at<U>(in.b);
  C* c = w.at<C>(in.c);
  for_lanes(m, [&](int l) { d[l] = c[l] >= 0 ? a[l] : b[l]; });
}

// Predicate logic; aux: 0 mov, 1 and, 2 or, 3 xor, 4 not; aux2: bit 0 negate a, bit 1 negate b
void h_pred(Warp& w, Inst const& in, uint32_t m) {
  uint32_t a = w.pred(in.a), b = in.b != kNoRef ? w.pred(in.b) : 0;
  if (in.aux2 & 1) a = ~a;
  if (in.aux2 & 2) b = ~b;
  uint32_t r = in.aux == 1 ? a & b : in.aux == 2 ? a | b : in.aux == 3 ? a ^ b : in.aux == 4 ? ~a : a;
  uint32_t& d = w.pred(in.d);
  d = (d & ~m) | (r & m);
}

template <class T>
void h_testp(Warp& w, Inst const& in, uint32_t m) {
  T const* a = w.at<T>(in.a);
  uint32_t r = 0;
  for (int l = 0; l < kLanes; ++l) {
    T x = a[l];
    bool v = in.aux == 0   ? std::isfinite(x)
             : in.aux == 1 ? std::isinf(x)
             : in.aux == 2 ? !std::isnan(x)
             : in.aux == 3 ? std::isnan(x)
             : in.aux == 4 ? std::isnormal(x)
                           : std::fpclassify(x) == FP_SUBNORMAL;
    r |= uint32_t(v) << l;
  }
  uint32_t& d = w.pred(in.d);
  d = (d & ~m) | (r & m);
}

// mov between a register and a vector of smaller ones; aux: element bytes. Elements are in `extra`
// with their register width in the high part of imm.
void h_pack(Warp& w, Inst const& in, uint32_t m) {
  Ref const* x = &w.prog->extra[in.x0];
  unsigned __int128 out[kLanes];
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    unsigned __int128 v = 0;
    for (int i = 0; i < in.xn; ++i) {
      uint64_t e = in.aux == 8   ? w.at<uint64_t>(x[i])[l]
                   : in.aux == 4 ? w.at<uint32_t>(x[i])[l]
                                 : w.at<uint16_t>(x[i])[l];
      if (in.aux == 1) e &= 255;
      v |= (unsigned __int128)e << (8 * in.aux * i);
    }
    out[l] = v;
  }
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    switch (in.bytes) {
      case 2: w.at<uint16_t>(in.d)[l] = uint16_t(out[l]); break;
      case 4: w.at<uint32_t>(in.d)[l] = uint32_t(out[l]); break;
      case 8: w.at<uint64_t>(in.d)[l] = uint64_t(out[l]); break;
      default: w.at<unsigned __int128>(in.d)[l] = out[l];
    }
  }
}
void h_unpack(Warp& w, Inst const& in, uint32_t m) {
  Ref const* x = &w.prog->extra[in.x0];
  unsigned __int128 v[kLanes];
  for (uint32_t k = m; k; k &= k - 1) {
    int l = std::countr_zero(k);
    switch (in.bytes) {
      case 2: v[l] = w.at<uint16_t>(in.a)[l]; break;
      case 4: v[l] = w.at<uint32_t>(in.a)[l]; break;
      case 8: v[l] = w.at<uint64_t>(in.a)[l]; break;
      default: v[l] = w.at<unsigned __int128>(in.a)[l];
    }
  }
  for (int i = 0; i < in.xn; ++i)
    for (uint32_t k = m; k; k &= k - 1) {
      int l = std::countr_zero(k);
      uint64_t e = uint64_t(v[l] >> (8 * in.aux * i));
      if (in.aux == 8)
        w.at<uint64_t>(x[i])[l] = e;
      else if (in.aux == 4)
        w.at<uint32_t>(x[i])[l] = uint32_t(e);
      else
        w.at<uint16_t>(x[i])[l] = uint16_t(in.aux == 1 ? e & 255 : e);
    }
}
// The 2-by-32-bit cases are common.
void h_pack64(Warp& w, Inst const& in, uint32_t m) {
  Ref const* x = &w.prog->extra[in.x0];
  auto *a = w.at<uint32_t>(x[0]), *b = w.at<uint32_t>(x[1]);
  auto* d = w.at<uint64_t>(in.d);
  for_lanes(m, [&](int l) { d[l] = uint64_t(b[l]) << 32 | a[l]; });
}
void h_pack32(Warp& w, Inst const& in, uint32_t m) {
  Ref const* x = &w.prog->extra[in.x0];
  auto *a = w.at<uint16_t>(x[0]), *b = w.at<uint16_t>(x[1]);
  auto* d = w.at<uint32_t>(in.d);
  for_lanes(m, [&](int l) { d[l] = uint32_t(b[l]) << 16 | a[l]; });
}

Cls float_class(Ty t) { return t == Ty::F64 ? Cls::Fp64 : t == Ty::F32 ? Cls::Fp32 : Cls::Fp16; }

// Pushes the instruction, then .sat / .relu on its destination.
void push_with_post(Emit& e, Ty t) {
  bool sat = e.has("sat"), relu = e.has("relu");
  e.push();
  if (!sat && !relu) return;
  Inst p;
  p.cls = e.in.cls;
  p.d = p.a = e.in.d;
  switch (t) {
    case Ty::F32: p.fn = post_op<float>(relu); break;
    case Ty::F64: p.fn = post_op<double>(relu); break;
    case Ty::F16: p.fn = post_op<F16>(relu); break;
    case Ty::BF16: p.fn = post_op<BF16>(relu); break;
    case Ty::F16x2: p.fn = post_pair<F16>(relu); break;
    case Ty::BF16x2: p.fn = post_pair<BF16>(relu); break;
    default: e.fail("modifier is not implemented");
  }
  e.in = p;
  e.push();
}

bool decode_float(Emit& e, Ty t) {
  std::string op(e.base());
  static const std::unordered_set<std::string_view> one = {"abs", "neg", "rcp", "sqrt", "rsqrt",
                                                           "sin", "cos", "lg2", "ex2",  "tanh"};
  static const std::unordered_set<std::string_view> three = {"fma", "mad"};
  if ((op == "min" || op == "max") && e.has("NaN")) op += ".NaN";
  int mode = e.has("rz") ? 1 : e.has("rm") ? 2 : e.has("rp") ? 3 : 0;
  Handler h = nullptr;
  if (e.has("xorsign")) e.fail("modifier is not implemented");
  int bytes = type_bytes(t);
  switch (t) {
    case Ty::F32: h = e.has("ftz") ? float_op<float, true>(op) : float_op<float, false>(op); break;
    case Ty::F64: h = float_op<double, false>(op); break;
    case Ty::F16: h = half_op<F16>(op); break;
    case Ty::BF16: h = half_op<BF16>(op); break;
    case Ty::F16x2: h = pair_op<F16>(op); break;
    case Ty::BF16x2: h = pair_op<BF16>(op); break;
    default: return false;
  }
  if (!h) return false;
  Cls cls = float_class(t);
  if (one.count(op))
    e.set1(h, cls, bytes);
  else if (three.count(op))
    e.set3(h, cls, bytes);
  else
    e.set2(h, cls, bytes);
  if (mode) {
    static const std::unordered_map<std::string_view, int> ops = {{"add", kRAdd}, {"sub", kRSub},  {"mul", kRMul},
                                                                  {"fma", kRFma}, {"mad", kRFma},  {"div", kRDiv},
                                                                  {"rcp", kRRcp}, {"sqrt", kRSqrt}};
    auto it = ops.find(op);
    if (it == ops.end() || (t != Ty::F32 && t != Ty::F64)) e.fail("rounding mode is not implemented");
    e.in.fn = t == Ty::F32 ? h_rounded<float> : h_rounded<double>;
    e.in.aux = uint8_t(mode);
    e.in.aux2 = uint8_t(it->second);
    if (e.has("ftz")) e.in.flags |= kFtz;
    if (e.in.b == kNoRef) e.in.b = e.in.a;
    if (e.in.c == kNoRef) e.in.c = e.in.a;
  }
  push_with_post(e, t);
  return true;
}

Handler int_handler(Ty t, std::string_view op) {
  switch (t) {
    case Ty::U16:
    case Ty::B16: return int_op<uint16_t>(op);
    case Ty::S16: return int_op<int16_t>(op);
    case Ty::U32:
    case Ty::B32: return int_op<uint32_t>(op);
    case Ty::S32: return int_op<int32_t>(op);
    case Ty::U64:
    case Ty::B64: return int_op<uint64_t>(op);
    case Ty::S64: return int_op<int64_t>(op);
    case Ty::S16x2: return int_pair_op<int16_t>(op);
    case Ty::U16x2: return int_pair_op<uint16_t>(op);
    default: return nullptr;
  }
}

void decode_carry(Emit& e, Ty t, bool in_carry) {
  std::string_view b = e.base();
  e.in.cls = Cls::Int;
  int bytes = type_bytes(t);
  bool mad = b[0] == 'm';
  e.in.d = e.def(e.arg(0), bytes);
  e.in.a = e.use(e.arg(1), bytes);
  e.in.b = e.use(e.arg(2), bytes);
  if (mad) e.in.c = e.use(e.arg(3), bytes);
  e.in.aux = uint8_t((in_carry ? 1 : 0) | (e.has("cc") ? 2 : 0));
  e.in.aux2 = mad ? (e.has("hi") ? 3 : 2) : b[0] == 's' ? 1 : 0;
  e.in.fn = is_signed(t) ? (bytes == 8 ? h_carry<int64_t> : h_carry<int32_t>)
                         : (bytes == 8 ? h_carry<uint64_t> : h_carry<uint32_t>);
  e.add_extra(e.carry(), false);
  e.add_extra(e.carry(), e.has("cc"));
  e.push();
}

void int_sat_s32(Warp& w, Inst const& in, uint32_t m) {
  auto *d = w.at<int32_t>(in.d), *a = w.at<int32_t>(in.a), *b = w.at<int32_t>(in.b);
  for_lanes(m, [&](int l) {
    int64_t r = in.aux ? int64_t(a[l]) - b[l] : int64_t(a[l]) + b[l];
    d[l] = int32_t(std::clamp<int64_t>(r, INT32_MIN, INT32_MAX));
  });
}

bool decode_mov(Emit& e) {
  Ty t = e.type();
  Operand const &d = e.arg(0), &s = e.arg(1);
  e.in.cls = Cls::Move;
  if (t == Ty::Pred) {
    e.in.fn = h_pred;
    e.in.d = e.def(d, 0);
    e.in.a = e.use(s, 0);
    e.in.aux2 = s.neg;
    e.push();
    return true;
  }
  int bytes = type_bytes(t);
  e.in.bytes = uint8_t(bytes);
  if (s.kind == Operand::Vec) {
    e.in.aux = uint8_t(bytes / int(s.elems.size()));
    e.in.d = e.def(d, bytes);
    for (Operand const& o : s.elems) e.add_extra(e.use(o, e.in.aux), false);
    e.in.fn = bytes == 8 && e.in.aux == 4 ? h_pack64 : bytes == 4 && e.in.aux == 2 ? h_pack32 : h_pack;
  } else if (d.kind == Operand::Vec) {
    e.in.aux = uint8_t(bytes / int(d.elems.size()));
    e.in.a = e.use(s, bytes);
    for (Operand const& o : d.elems) e.add_extra(e.def(o, e.in.aux), true);
    e.in.fn = h_unpack;
  } else {
    e.in.d = e.def(d, bytes);
    e.in.a = e.use(s, bytes);
    e.in.fn = bytes == 2   ? bit_op<uint16_t>("mov")
              : bytes == 4 ? bit_op<uint32_t>("mov")
              : bytes == 8 ? bit_op<uint64_t>("mov")
                           : un<[](unsigned __int128 a) { return a; }, unsigned __int128, unsigned __int128>;
  }
  e.push();
  return true;
}

bool decode_setp(Emit& e) {
  bool set = e.base() == "set";
  int cmp = parse_cmp(e.st.mods[1]);
  if (cmp < 0) e.fail("unknown comparison");
  Ty dt = set ? e.type(0) : Ty::Pred, t = set ? e.type(1) : e.type(0);
  e.in.fn = setp_handler(t, cmp);
  if (!e.in.fn) e.fail("type is not implemented");
  e.in.cls = is_float(t) ? float_class(t) : Cls::Int;
  bool two = t == Ty::F16x2 || t == Ty::BF16x2;
  int bytes = type_bytes(t);
  e.in.a = e.use(e.arg(1), bytes);
  e.in.b = e.use(e.arg(2), bytes);
  e.in.aux = e.has("and") ? 1 : e.has("or") ? 2 : e.has("xor") ? 3 : 0;
  if (e.in.aux) {
    e.in.c = e.use(e.arg(3), 0);
    if (e.arg(3).neg) e.in.flags |= kNegC;
  }
  if (!set) {
    e.in.d = e.def(e.arg(0), 0);
    if (!e.arg(0).elems.empty()) e.in.d2 = e.def(e.arg(0).elems[0], 0);
    e.push();
    return true;
  }
  Ref p = e.temp(0), q = two ? e.temp(0) : kNoRef;
  e.in.d = p;
  e.in.d2 = q;
  e.push();
  Inst v;
  v.cls = Cls::Int;
  v.fn = h_set_value;
  v.a = p;
  v.b = q;
  v.aux = uint8_t(type_bytes(dt));
  v.aux2 = two;
  switch (dt) {
    case Ty::F32: v.imm = 0x3f800000; break;
    case Ty::F16:
    case Ty::F16x2: v.imm = 0x3c00; break;
    case Ty::BF16:
    case Ty::BF16x2: v.imm = 0x3f80; break;
    default: v.imm = two ? 0xffff : ~0ull;
  }
  v.d = e.def(e.arg(0), v.aux);
  e.in = v;
  e.push();
  return true;
}

}  // namespace

bool decode_alu(Emit& e) {
  std::string_view b = e.base();
  Ty t = e.type();
  int bytes = type_bytes(t);

  if (b == "mov") return decode_mov(e);
  if (b == "setp" || b == "set") return decode_setp(e);
  if (t == Ty::Pred && (b == "and" || b == "or" || b == "xor" || b == "not")) {
    e.in.cls = Cls::Int;
    e.in.fn = h_pred;
    e.in.d = e.def(e.arg(0), 0);
    e.in.a = e.use(e.arg(1), 0);
    if (b != "not") e.in.b = e.use(e.arg(2), 0);
    e.in.aux = b == "and" ? 1 : b == "or" ? 2 : b == "xor" ? 3 : 4;
    e.in.aux2 = uint8_t((e.arg(1).neg ? 1 : 0) | (b != "not" && e.arg(2).neg ? 2 : 0));
    e.push();
    return true;
  }
  if (b == "selp") {
    e.in.cls = Cls::Move;
    e.in.d = e.def(e.arg(0), bytes);
    e.in.a = e.use(e.arg(1), bytes);
    e.in.b = e.use(e.arg(2), bytes);
    e.in.c = e.use(e.arg(3), 0);
    if (e.arg(3).neg) e.in.flags |= kNegC;
    e.in.fn = bytes == 2 ? h_selp<uint16_t> : bytes == 4 ? h_selp<uint32_t> : h_selp<uint64_t>;
    e.push();
    return true;
  }
  if (b == "slct") {
    bool f = e.type(1) == Ty::F32;
    e.in.cls = Cls::Move;
    e.in.d = e.def(e.arg(0), bytes);
    e.in.a = e.use(e.arg(1), bytes);
    e.in.b = e.use(e.arg(2), bytes);
    e.in.c = e.use(e.arg(3), 4);
    e.in.fn = bytes == 2   ? (f ? h_slct<uint16_t, float> : h_slct<uint16_t, int32_t>)
              : bytes == 4 ? (f ? h_slct<uint32_t, float> : h_slct<uint32_t, int32_t>)
                           : (f ? h_slct<uint64_t, float> : h_slct<uint64_t, int32_t>);
    e.push();
    return true;
  }
  if (b == "addc" || b == "subc" || b == "madc") {
    decode_carry(e, t, true);
    return true;
  }
  if ((b == "add" || b == "sub" || b == "mad") && e.has("cc")) {
    decode_carry(e, t, false);
    return true;
  }
  if (b == "testp") {
    static char const* kinds[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
    e.in.cls = float_class(t);
    for (uint8_t i = 0; i < 6; ++i)
      if (e.has(kinds[i])) e.in.aux = i;
    e.in.d = e.def(e.arg(0), 0);
    e.in.a = e.use(e.arg(1), bytes);
    e.in.fn = t == Ty::F64 ? h_testp<double> : h_testp<float>;
    e.push();
    return true;
  }
  static const std::unordered_set<std::string_view> arith = {"add",   "sub", "mul", "mad", "fma", "div",  "rem",
                                                             "min",   "max", "abs", "neg", "sad", "rcp",  "sqrt",
                                                             "rsqrt", "sin", "cos", "lg2", "ex2", "tanh", "copysign"};
  if (arith.count(b)) {
    if (is_float(t)) return decode_float(e, t);
    if (e.has("sat")) {
      if (t != Ty::S32 || (b != "add" && b != "sub")) e.fail("modifier is not implemented");
      e.set2(int_sat_s32, Cls::Int, 4);
      e.in.aux = b == "sub";
      e.push();
      return true;
    }
    if (e.has("relu")) e.fail("modifier is not implemented");
    if (e.has("wide")) {
      Handler h = nullptr;
      std::string op = std::string(b) + ".wide";
      switch (t) {
        case Ty::U16: h = wide_op<uint16_t>(op); break;
        case Ty::S16: h = wide_op<int16_t>(op); break;
        case Ty::U32: h = wide_op<uint32_t>(op); break;
        case Ty::S32: h = wide_op<int32_t>(op); break;
        default: return false;
      }
      e.set(h, Cls::Int);
      e.in.d = e.def(e.arg(0), 2 * bytes);
      e.in.a = e.use(e.arg(1), bytes);
      e.in.b = e.use(e.arg(2), bytes);
      if (b == "mad") e.in.c = e.use(e.arg(3), 2 * bytes);
      e.push();
      return true;
    }
    std::string op(b);
    if (b == "mul" || b == "mad") op += e.has("hi") ? ".hi" : ".lo";
    Handler h = int_handler(t, op);
    if (!h) return false;
    if (b == "abs" || b == "neg")
      e.set1(h, Cls::Int, bytes);
    else if (b == "mad" || b == "sad")
      e.set3(h, Cls::Int, bytes);
    else
      e.set2(h, Cls::Int, bytes);
    e.push();
    return true;
  }
  if ((b == "mul24" || b == "mad24") && !e.has("hi")) {  // low 24 bits, extended by the type
    bool s = is_signed(t);
    if (b == "mul24")
      e.set2(s ? bin<mul24<int32_t>, int32_t, int32_t, int32_t> : bin<mul24<uint32_t>, uint32_t, uint32_t, uint32_t>,
             Cls::Int, 4);
    else
      e.set3(s ? tern<mad24<int32_t>, int32_t, int32_t, int32_t, int32_t>
               : tern<mad24<uint32_t>, uint32_t, uint32_t, uint32_t, uint32_t>,
             Cls::Int, 4);
    e.push();
    return true;
  }
  if (b == "and" || b == "or" || b == "xor" || b == "not" || b == "cnot" || b == "shl") {
    e.set(bytes == 2 ? bit_op<uint16_t>(b) : bytes == 4 ? bit_op<uint32_t>(b) : bit_op<uint64_t>(b), Cls::Int);
    e.in.d = e.def(e.arg(0), bytes);
    e.in.a = e.use(e.arg(1), bytes);
    if (e.nargs() > 2) e.in.b = e.use(e.arg(2), b == "shl" ? 4 : bytes);
    e.push();
    return true;
  }
  if (b == "shr") {
    e.set(int_handler(t, "shr"), Cls::Int);
    e.in.d = e.def(e.arg(0), bytes);
    e.in.a = e.use(e.arg(1), bytes);
    e.in.b = e.use(e.arg(2), 4);
    e.push();
    return true;
  }
  if (b == "popc" || b == "clz" || b == "brev") {
    e.set(bytes == 4 ? count_op<uint32_t>(b) : count_op<uint64_t>(b), Cls::Int);
    e.in.d = e.def(e.arg(0), b == "brev" ? bytes : 4);
    e.in.a = e.use(e.arg(1), bytes);
    e.push();
    return true;
  }
  if (b == "bfind") {
    bool s = e.has("shiftamt");
    Handler h = nullptr;
    switch (t) {
      case Ty::U32:
        h = s ? un<bfind<uint32_t, true>, uint32_t, uint32_t> : un<bfind<uint32_t, false>, uint32_t, uint32_t>;
        break;
      case Ty::S32:
        h = s ? un<bfind<int32_t, true>, uint32_t, int32_t> : un<bfind<int32_t, false>, uint32_t, int32_t>;
        break;
      case Ty::U64:
        h = s ? un<bfind<uint64_t, true>, uint32_t, uint64_t> : un<bfind<uint64_t, false>, uint32_t, uint64_t>;
        break;
      default:
        h = s ? un<bfind<int64_t, true>, uint32_t, int64_t> : un<bfind<int64_t, false>, uint32_t, int64_t>;
        break;
    }
    e.set(h, Cls::Int);
    e.in.d = e.def(e.arg(0), 4);
    e.in.a = e.use(e.arg(1), bytes);
    e.push();
    return true;
  }
  if (b == "bfe") {
    Handler h = nullptr;
    switch (t) {
      case Ty::U32: h = tern<bfe<uint32_t>, uint32_t, uint32_t, uint32_t, uint32_t>; break;
      case Ty::S32: h = tern<bfe<int32_t>, int32_t, int32_t, uint32_t, uint32_t>; break;
      case Ty::U64: h = tern<bfe<uint64_t>, uint64_t, uint64_t, uint32_t, uint32_t>; break;
      default: h = tern<bfe<int64_t>, int64_t, int64_t, uint32_t, uint32_t>; break;
    }
    e.set(h, Cls::Int);
    e.in.d = e.def(e.arg(0), bytes);
    e.in.a = e.use(e.arg(1), bytes);
    e.in.b = e.use(e.arg(2), 4);
    e.in.c = e.use(e.arg(3), 4);
    e.push();
    return true;
  }
  if (b == "bfi") {
    e.set(bytes == 4 ? h_bfi<uint32_t> : h_bfi<uint64_t>, Cls::Int);
    e.in.d = e.def(e.arg(0), bytes);
    e.in.a = e.use(e.arg(1), bytes);
    e.in.b = e.use(e.arg(2), bytes);
    e.in.c = e.use(e.arg(3), 4);
    e.add_extra(e.use(e.arg(4), 4), false);
    e.push();
    return true;
  }
  if (b == "bmsk") {
    bool clamp = e.has("clamp");
    e.set2(clamp ? bin<[](uint32_t p, uint32_t n) {
             return p >= 32 ? 0u : uint32_t(((n >= 32 ? 0xffffffffull : (1ull << n) - 1) << p));
           },
                       uint32_t, uint32_t, uint32_t>
                 : bin<[](uint32_t p, uint32_t n) { return uint32_t(((1ull << (n & 31)) - 1) << (p & 31)); }, uint32_t,
                       uint32_t, uint32_t>,
           Cls::Int, 4);
    e.push();
    return true;
  }
  if (b == "szext") {
    bool s = t == Ty::S32;
    e.set2(
        s ? bin<[](uint32_t a, uint32_t n) {
          return n == 0 ? 0u : n >= 32 ? a : uint32_t(int32_t(a << (32 - n)) >> (32 - n));
        },
                uint32_t, uint32_t, uint32_t>
          : bin<[](uint32_t a, uint32_t n) { return n >= 32 ? a : a & ((1u << n) - 1); }, uint32_t, uint32_t, uint32_t>,
        Cls::Int, 4);
    e.push();
    return true;
  }
  if (b == "lop3") {
    e.set3(h_lop3, Cls::Int, 4);
    e.in.aux = uint8_t(e.arg(4).imm);
    if (e.nargs() > 5) e.fail("predicate form is not implemented");
    e.push();
    return true;
  }
  if (b == "shf") {
    bool l = e.has("l"), c = e.has("clamp");
    e.set3(l ? (c ? tern<funnel<true, true>, uint32_t, uint32_t, uint32_t, uint32_t>
                  : tern<funnel<true, false>, uint32_t, uint32_t, uint32_t, uint32_t>)
             : (c ? tern<funnel<false, true>, uint32_t, uint32_t, uint32_t, uint32_t>
                  : tern<funnel<false, false>, uint32_t, uint32_t, uint32_t, uint32_t>),
           Cls::Int, 4);
    e.push();
    return true;
  }
  if (b == "prmt") {
    static char const* modes[] = {"", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"};
    e.set3(h_prmt, Cls::Int, 4);
    for (uint8_t i = 1; i < 7; ++i)
      if (e.has(modes[i])) e.in.aux = i;
    e.push();
    return true;
  }
  if (b == "dp4a" || b == "dp2a") {
    e.set3(h_dp, Cls::Int, 4);
    e.in.aux = uint8_t((is_signed(e.type(0)) ? 1 : 0) | (is_signed(e.type(1)) ? 2 : 0));
    e.in.aux2 = b == "dp4a" ? 4 : e.has("hi") ? 1 : 0;
    e.push();
    return true;
  }
  if (b.size() > 4 && b[0] == 'v' && (b.back() == '2' || b.back() == '4')) {
    static const std::unordered_map<std::string_view, int> ops = {
        {"vadd", kVAdd}, {"vsub", kVSub}, {"vabsdiff", kVAbsDiff}, {"vmin", kVMin}, {"vmax", kVMax}, {"vavrg", kVAvg}};
    auto it = ops.find(b.substr(0, b.size() - 1));
    if (it == ops.end()) return false;
    e.set3(h_video, Cls::Int, 4);
    e.in.aux = uint8_t(it->second);
    e.in.aux2 = uint8_t(b.back() - '0');
    e.in.imm = (is_signed(e.type(0)) ? 1 : 0) | (is_signed(e.type(1)) ? 2 : 0) | (is_signed(e.type(2)) ? 4 : 0);
    if (e.has("sat")) e.in.flags |= kSat;
    if (e.has("add")) e.in.flags |= kHasC;
    e.push();
    return true;
  }
  return false;
}

}  // namespace ptxrun
