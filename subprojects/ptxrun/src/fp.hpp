// Small floating-point formats.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace ptxrun {

enum class Round : uint8_t { Nearest, Zero, Down, Up, NearestAway };

// The nearest float towards which no second rounding to a shorter format goes wrong ("round to odd").
inline float round_to_odd(double x) {
  float f = float(x);
  uint32_t u = std::bit_cast<uint32_t>(f);
  if (double(f) != x && x == x && !std::isinf(f)) {
    if (std::fabs(double(f)) > std::fabs(x)) --u;
    u |= 1;
  }
  return std::bit_cast<float>(u);
}

// Conversions of binary16 in integers: for _Float16 compilers call a slow function where the machine need not have
// F16C.
struct F16 {
  uint16_t bits;
  F16() = default;
  explicit F16(float f) {
    uint32_t u = std::bit_cast<uint32_t>(f), sign = u & 0x80000000u;
    u ^= sign;
    if (u >= 0x47800000u)
      u = u > 0x7f800000u ? 0x7e00 | (u >> 13 & 0x1ff) : 0x7c00;  // NaN; 65536 and above
    else if (u < 0x38800000u)
      u = std::bit_cast<uint32_t>(std::bit_cast<float>(u) + 0.5f) - 0x3f000000u;  // subnormal
    else
      u = (u + 0xc8000fffu + (u >> 13 & 1)) >> 13;
    bits = uint16_t(u | sign >> 16);
  }
  explicit F16(double f) : F16(round_to_odd(f)) {}
  operator float() const {
    uint32_t u = bits & 0x7fff, v = u << 13;
    if (u >= 0x7c00)
      v |= 0x7f800000u | (u > 0x7c00 ? 0x400000u : 0);  // infinity, quiet NaN
    else if (u >= 0x0400)
      v += 112u << 23;
    else
      v = std::bit_cast<uint32_t>(std::bit_cast<float>(0x3f000000u | u) - 0.5f);
    return std::bit_cast<float>(v | uint32_t(bits & 0x8000) << 16);
  }
};

struct BF16 {
  uint16_t bits;
  BF16() = default;
  explicit BF16(float f) {
    uint32_t u = std::bit_cast<uint32_t>(f);
    bits = (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  explicit BF16(double f) : BF16(round_to_odd(f)) {}
  operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};

template <class T>
struct Pair {  // f16x2, bf16x2, s16x2, u16x2
  T lo, hi;
};

// Rounds `x` to a format with `mbits` of mantissa and exponent range [emin, emax] (unbiased, normal
// numbers). The result is exact in long double; overflow gives infinity or the largest number as the
// rounding mode demands.
inline long double round_to(long double x, int mbits, int emin, int emax, Round mode, long double largest) {
  if (x == 0 || std::isnan(x) || std::isinf(x)) return x;
  int e = std::max(std::ilogb(x), emin);
  long double ulp = std::ldexp(1.0L, e - mbits), q = std::fabs(x) / ulp, f = std::floor(q), r = q - f;
  bool neg = std::signbit(x), up = false;
  switch (mode) {
    case Round::Nearest: up = r > 0.5L || (r == 0.5L && std::fmod(f, 2.0L) != 0); break;
    case Round::NearestAway: up = r >= 0.5L; break;
    case Round::Zero: break;
    case Round::Down: up = neg && r > 0; break;
    case Round::Up: up = !neg && r > 0; break;
  }
  long double y = (f + up) * ulp;
  if (y > largest) {
    bool to_inf = mode == Round::Nearest || mode == Round::NearestAway || (mode == Round::Up && !neg) ||
                  (mode == Round::Down && neg);
    y = to_inf ? std::numeric_limits<long double>::infinity() : largest;
  }
  (void)emax;
  return neg ? -y : y;
}

inline uint8_t to_e4m3(float x) {  // saturating to +-448
  uint8_t s = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return 0x7f;
  long double y = std::fabs(round_to(x, 3, -6, 8, Round::Nearest, 1e30L));
  if (y > 448) y = 448;
  if (y == 0) return s;
  int e = std::ilogb(y);
  if (e < -6) return s | uint8_t(y * 512);
  return s | uint8_t((e + 7) << 3) | uint8_t(std::ldexp(y, 3 - e) - 8);
}
inline float from_e4m3(uint8_t v) {
  int e = v >> 3 & 15, m = v & 7;
  float f = e == 15 && m == 7 ? NAN : e ? std::ldexp(8.0f + float(m), e - 10) : float(m) / 512;
  return v & 0x80 ? -f : f;
}
inline uint8_t to_e5m2(float x) {  // saturating to +-57344
  uint8_t s = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return 0x7f;
  long double y = std::fabs(round_to(x, 2, -14, 15, Round::Nearest, 1e30L));
  if (y > 57344) y = 57344;
  if (y == 0) return s;
  int e = std::ilogb(y);
  if (e < -14) return s | uint8_t(y * 65536);
  return s | uint8_t((e + 15) << 2) | uint8_t(std::ldexp(y, 2 - e) - 4);
}
inline float from_e5m2(uint8_t v) { return std::bit_cast<F16>(uint16_t(v << 8)); }

inline float flush(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }

}  // namespace ptxrun
