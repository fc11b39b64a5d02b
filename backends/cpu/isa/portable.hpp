#pragma once
/// \file
/// The words of whatever the compiler was told, through Highway, and the kernels made of them.

#if defined(__x86_64__) && !defined(HWY_WANT_SSSE3)
// Highway has no vectors for less: its emulation of them is broken under g++ before 12.3.
#define HWY_WANT_SSSE3 1
#endif
#include <hwy/highway.h>

#include "backends/cpu/kernel/common.hpp"
#include "backends/cpu/kernel/sealing.hpp"

#if HWY_HAVE_SCALABLE || HWY_TARGET == HWY_SCALAR
#error "vectors of 128 bits are needed: disable SVE or RVV by HWY_DISABLED_TARGETS, on x86 define HWY_WANT_SSSE3 as 1"
#endif

HWY_BEFORE_NAMESPACE();
namespace kvquant::cpu::portable {

namespace hn = hwy::HWY_NAMESPACE;

/// 512 bits in the vectors that every machine has.
template <class T>
struct quarters {
  using element = T;
  using tag = hn::FixedTag<T, 16 / sizeof(T)>;
  static constexpr std::size_t size = 64 / sizeof(T), step = 16 / sizeof(T);
  hn::Vec<tag> v[4];
};
struct floats : quarters<float> {};         ///< 16
struct ints : quarters<std::int32_t> {};    ///< 16
struct shorts : quarters<std::int16_t> {};  ///< 32
struct bytes : quarters<std::uint8_t> {};   ///< 64

/// Sums of integers, `ints`, that are best kept side by side. They are in memory anyway; four blocks of values share
/// what is repeated for them.
inline constexpr std::size_t held_sums = 8;
/// Bits of a probability: two parts of 7 bits, so that no sum of two products with 8-bit numbers leaves 16 bits.
inline constexpr int probability_bits = 14;

namespace detail {
/// `f` of each quarter.
template <class Out, class F, class... In>
HWY_INLINE Out each(F f, In const&... in) {
  Out out;
  for (std::size_t i = 0; i < 4; ++i) out.v[i] = f(in.v[i]...);
  return out;
}
template <class Out>
HWY_INLINE Out repeat(typename Out::element x) {
  Out out;
  for (auto& it : out.v) it = hn::Set(typename Out::tag{}, x);
  return out;
}
template <class Out>
HWY_INLINE Out load(void const* p) {
  alignas(16) typename Out::element x[Out::size];
  std::memcpy(x, p, sizeof x);
  Out out;
  for (std::size_t i = 0; i < 4; ++i) out.v[i] = hn::Load(typename Out::tag{}, x + Out::step * i);
  return out;
}
template <class In>
HWY_INLINE void store(void* p, In const& in) {
  alignas(16) typename In::element x[In::size];
  for (std::size_t i = 0; i < 4; ++i) hn::Store(in.v[i], typename In::tag{}, x + In::step * i);
  std::memcpy(p, x, sizeof x);
}
/// The elements as an array.
template <class In>
struct elements {
  alignas(16) typename In::element x[In::size];
  explicit elements(In const& in) { store(x, in); }
};
/// Of 16 bits that hold two of 8: the lower and the higher.
template <class V>
HWY_INLINE auto lower(V v) {
  return hn::ShiftRight<8>(hn::ShiftLeft<8>(hn::BitCast(shorts::tag{}, v)));
}
template <class V>
HWY_INLINE auto higher(V v) {
  return hn::ShiftRight<8>(hn::BitCast(shorts::tag{}, v));
}
using unsigned_shorts = quarters<std::uint16_t>::tag;
}  // namespace detail

inline floats all(float x) { return detail::repeat<floats>(x); }
inline floats zero() { return all(0.0f); }
inline floats load(float const* p) { return detail::load<floats>(p); }
inline floats load(half const* p) {
  float x[16];
  for (std::size_t i = 0; i < 16; ++i) x[i] = to_float(p[i]);
  return load(x);
}
/// The residuals of 16 slots.
inline floats load_residuals(outlier const* p) {
  float x[16];
  for (std::size_t i = 0; i < 16; ++i) x[i] = to_float(p[i].residual);
  return load(x);
}
inline void store(float* p, floats x) { detail::store(p, x); }
inline floats operator+(floats a, floats b) {
  return detail::each<floats>([](auto x, auto y) { return hn::Add(x, y); }, a, b);
}
inline floats operator-(floats a, floats b) {
  return detail::each<floats>([](auto x, auto y) { return hn::Sub(x, y); }, a, b);
}
inline floats operator*(floats a, floats b) {
  return detail::each<floats>([](auto x, auto y) { return hn::Mul(x, y); }, a, b);
}
inline floats fma(floats a, floats b, floats c) {
  return detail::each<floats>([](auto x, auto y, auto z) { return hn::MulAdd(x, y, z); }, a, b, c);
}
inline floats fms(floats a, floats b, floats c) {
  return detail::each<floats>([](auto x, auto y, auto z) { return hn::MulSub(x, y, z); }, a, b, c);
}
inline floats max(floats a, floats b) {
  return detail::each<floats>([](auto x, auto y) { return hn::Max(x, y); }, a, b);
}
inline floats round(floats x) {
  return detail::each<floats>([](auto v) { return hn::Round(v); }, x);
}
/// x · 2^n for n ≥ -126
inline floats scale_by_power(floats x, floats n) {
  return detail::each<floats>(
      [](auto v, auto power) {
        ints::tag const whole;
        auto const exponent = hn::Add(hn::NearestInt(power), hn::Set(whole, 127));
        return hn::Mul(v, hn::BitCast(floats::tag{}, hn::ShiftLeft<23>(exponent)));
      },
      x, n);
}
inline float sum(floats x) {
  auto const four = hn::Add(hn::Add(x.v[0], x.v[1]), hn::Add(x.v[2], x.v[3]));
  return hn::GetLane(hn::SumOfLanes(floats::tag{}, four));
}
inline float largest(floats x) {
  auto const four = hn::Max(hn::Max(x.v[0], x.v[1]), hn::Max(x.v[2], x.v[3]));
  return hn::GetLane(hn::MaxOfLanes(floats::tag{}, four));
}
/// Even and odd elements of two vectors that follow each other.
inline void separate(floats low, floats high, floats& even, floats& odd) {
  floats::tag const d;
  for (std::size_t i = 0; i < 2; ++i) {
    even.v[i] = hn::ConcatEven(d, low.v[2 * i + 1], low.v[2 * i]);
    odd.v[i] = hn::ConcatOdd(d, low.v[2 * i + 1], low.v[2 * i]);
    even.v[2 + i] = hn::ConcatEven(d, high.v[2 * i + 1], high.v[2 * i]);
    odd.v[2 + i] = hn::ConcatOdd(d, high.v[2 * i + 1], high.v[2 * i]);
  }
}

/// The sums of sixteen vectors.
inline floats sum_each(float const (*parts)[16]) {
  float sums[16];
  for (std::size_t i = 0; i < 16; ++i) sums[i] = sum(load(parts[i]));
  return load(sums);
}

/// [16, 4]: the elements of four vectors side by side.
inline void store_transposed(float* p, floats const (&x)[4]) {
  for (std::size_t n = 0; n < 4; ++n) {
    detail::elements const row(x[n]);
    for (std::size_t i = 0; i < 16; ++i) std::memcpy(p + 4 * i + n, &row.x[i], sizeof(float));
  }
}

inline ints zero_ints() { return detail::repeat<ints>(0); }
inline ints rounded(floats x) {
  return detail::each<ints>([](auto v) { return hn::NearestInt(v); }, x);
}
inline floats to_floats(ints x) {
  return detail::each<floats>([](auto v) { return hn::ConvertTo(floats::tag{}, v); }, x);
}
/// high · 2^7 + low
inline ints join_parts(ints high, ints low) {
  return detail::each<ints>([](auto h, auto l) { return hn::Add(hn::ShiftLeft<7>(h), l); }, high, low);
}
/// x as two parts, of 7 bits each; [16] each.
inline void store_parts(ints x, std::uint8_t* high, std::uint8_t* low) {
  detail::elements const from(x);
  for (std::size_t i = 0; i < 16; ++i) {
    high[i] = static_cast<std::uint8_t>(from.x[i] >> 7);
    low[i] = static_cast<std::uint8_t>(from.x[i] & 127);
  }
}
/// The low 16 bits of each: [16, {low, high}] under floats' names.
inline floats pair_low(ints low, ints high) {
  return detail::each<floats>(
      [](auto x, auto y) {
        ints::tag const d;
        return hn::BitCast(floats::tag{}, hn::Or(hn::And(x, hn::Set(d, 0xffff)), hn::ShiftLeft<16>(y)));
      },
      low, high);
}
/// The low 16 bits of each: [16].
inline void store_low(std::int16_t* p, ints x) {
  detail::elements const from(x);
  for (std::size_t i = 0; i < 16; ++i) p[i] = static_cast<std::int16_t>(from.x[i]);
}
/// The low 8 bits of each, a and b alternating: [16, 2].
inline void store_low_pairs(std::int8_t* p, ints a, ints b) {
  detail::elements const first(a), second(b);
  for (std::size_t i = 0; i < 16; ++i) {
    p[2 * i] = static_cast<std::int8_t>(first.x[i]);
    p[2 * i + 1] = static_cast<std::int8_t>(second.x[i]);
  }
}

HWY_INLINE bytes load_bytes(void const* p) { return detail::load<bytes>(p); }
inline void store_bytes(void* p, bytes x) { detail::store(p, x); }
HWY_INLINE shorts load_shorts(void const* p) { return detail::load<shorts>(p); }
inline void store_shorts(void* p, shorts x) { detail::store(p, x); }
HWY_INLINE bytes repeat_bytes(std::int32_t four) {
  return detail::each<bytes>([](auto v) { return hn::BitCast(bytes::tag{}, v); }, detail::repeat<ints>(four));
}
HWY_INLINE bytes repeat_eight(std::uint8_t const* p) {
  std::uint64_t eight;
  std::memcpy(&eight, p, sizeof(eight));
  auto const v = hn::BitCast(bytes::tag{}, hn::Set(quarters<std::uint64_t>::tag{}, eight));
  bytes out;
  for (auto& it : out.v) it = v;
  return out;
}
HWY_INLINE shorts repeat_shorts(std::int32_t two) {
  return detail::each<shorts>([](auto v) { return hn::BitCast(shorts::tag{}, v); }, detail::repeat<ints>(two));
}
HWY_INLINE shorts operator+(shorts a, shorts b) {
  return detail::each<shorts>([](auto x, auto y) { return hn::Add(x, y); }, a, b);
}
/// Products of unsigned a and signed b, neighbours added.
HWY_INLINE shorts multiply_pairs(bytes a, bytes b) {
  return detail::each<shorts>(
      [](auto x, auto y) {
        shorts::tag const d;
        auto const even = hn::And(hn::BitCast(d, x), hn::Set(d, 0xff));
        auto const odd = hn::BitCast(d, hn::ShiftRight<8>(hn::BitCast(detail::unsigned_shorts{}, x)));
        return hn::Add(hn::Mul(even, detail::lower(y)), hn::Mul(odd, detail::higher(y)));
      },
      a, b);
}
/// sum + products of neighbours, two at a time.
HWY_INLINE ints dot(ints sum, shorts a, shorts b) {
  return detail::each<ints>(
      [](auto before, auto x, auto y) {
        ints::tag const d;
        auto second = hn::Zero(d);
        auto const first = hn::ReorderWidenMulAccumulate(d, x, y, hn::Zero(d), second);
        return hn::Add(before, hn::RearrangeToOddPlusEven(first, second));
      },
      sum, a, b);
}
/// sum + products of unsigned a, below 128, and signed b, four at a time.
HWY_INLINE ints dot(ints sum, bytes a, bytes b) { return dot(sum, multiply_pairs(a, b), detail::repeat<shorts>(1)); }

/// Products of `Lanes` pairs, 1 or 4, with one pair, each added up: [Lanes, 2] and [2].
template <std::size_t Lanes>
inline slot_floats<Lanes> dot_each(std::int16_t const* pairs, std::int16_t const* by) {
  auto const one = [&](std::size_t n) { return static_cast<float>(pairs[2 * n] * by[0] + pairs[2 * n + 1] * by[1]); };
  if constexpr (Lanes == 1)
    return one(0);
  else
    return slot_floats<Lanes>{one(0), one(1), one(2), one(3)};
}

/// A table of 2^Bits bytes, repeated to the sixteen that four bits choose from.
template <int Bits>
struct code_table {
  hn::Vec<bytes::tag> entries;

  explicit code_table(std::uint8_t const* table) {
    alignas(16) std::uint8_t x[16];
    for (unsigned i = 0; i < 16; ++i) x[i] = table[i & ((1u << Bits) - 1)];
    entries = hn::Load(bytes::tag{}, x);
  }
  code_table const& held() const { return *this; }
};

namespace detail {
/// The bits of `Mask` after a shift down.
template <int Shift, int Mask, class V>
HWY_INLINE V bits(V line) {
  unsigned_shorts const d;
  auto const shifted = hn::BitCast(bytes::tag{}, hn::ShiftRight<Shift>(hn::BitCast(d, line)));
  return hn::And(shifted, hn::Set(bytes::tag{}, Mask));
}

/// A quarter of a block as codes: the bytes from `packed` of every line.
template <int Bits, std::size_t Block>
HWY_INLINE auto codes_of_quarter(std::uint8_t const* packed) {
  auto const line = [&](std::size_t i) { return hn::LoadU(bytes::tag{}, packed + 64 * i); };
  constexpr int mask = (1 << Bits) - 1;
  if constexpr (Bits == 1) return bits<Block, mask>(line(0));
  if constexpr (Bits == 4) return bits<Block % 2 * 4, mask>(line(Block / 2));
  if constexpr (Bits == 2) return bits<Block % 4 * 2, mask>(line(Block / 4));
  if constexpr (Bits == 3 && Block < 6) return bits<Block % 2 * 3, mask>(line(Block / 2));
  if constexpr (Bits == 3 && Block >= 6)
    return hn::Or(bits<6, 3>(line(Block - 6)), bits<static_cast<int>(Block) - 2, 4>(line(2)));
}
}  // namespace detail

/// What the codes of one of eight blocks read as; see `eight_blocks.hpp`.
template <std::size_t Block, int Bits>
HWY_INLINE bytes unpack_block(std::uint8_t const* packed, code_table<Bits> const& table) {
  bytes out;
  for (std::size_t quarter = 0; quarter < 4; ++quarter)
    out.v[quarter] = hn::TableLookupBytes(table.entries, detail::codes_of_quarter<Bits, Block>(packed + 16 * quarter));
  return out;
}

// Words of sealing.

inline floats operator/(floats a, floats b) {
  return detail::each<floats>([](auto x, auto y) { return hn::Div(x, y); }, a, b);
}
/// a · b + c, rounded after each step, whatever the compiler contracts.
inline floats multiply_then_add(floats a, floats b, floats c) {
  alignas(16) float product[16];
  store(product, a * b);
  asm volatile("" : : "r"(product) : "memory");
  return load(product) + c;
}
/// Binary16, kept finite.
inline void store(half* p, floats x) {
  detail::elements const from(x);
  for (std::size_t i = 0; i < 16; ++i) p[i] = to_half(std::clamp(from.x[i], -largest_half, largest_half));
}
/// The low 8 bits of each: [16].
inline void store_low(std::uint8_t* p, ints x) {
  detail::elements const from(x);
  for (std::size_t i = 0; i < 16; ++i) p[i] = static_cast<std::uint8_t>(from.x[i]);
}
/// Elements of a table, each `at` below `Entries`.
template <int Entries>
inline floats look_up(floats table, ints at) {
  static_assert(Entries <= 16);
  detail::elements const entries(table);
  detail::elements const index(at);
  float x[16];
  for (std::size_t i = 0; i < 16; ++i) x[i] = entries.x[index.x[i]];
  return load(x);
}
/// count + (x > boundary)
inline ints count_above(ints count, floats x, floats boundary) {
  return detail::each<ints>(
      [](auto before, auto v, auto b) {
        return hn::Sub(before, hn::BitCast(ints::tag{}, hn::VecFromMask(floats::tag{}, hn::Gt(v, b))));
      },
      count, x, boundary);
}
/// x > boundary ? above : below
inline floats select_above(floats below, floats x, floats boundary, floats above) {
  return detail::each<floats>(
      [](auto low, auto v, auto b, auto high) { return hn::IfThenElse(hn::Gt(v, b), high, low); }, below, x, boundary,
      above);
}
/// 2 · code + (x > boundary)
inline ints append_bit(ints code, floats x, floats boundary) {
  return detail::each<ints>(
      [](auto before, auto v, auto b) {
        auto const above = hn::BitCast(ints::tag{}, hn::VecFromMask(floats::tag{}, hn::Gt(v, b)));
        return hn::Sub(hn::Add(before, before), above);
      },
      code, x, boundary);
}
/// Bit i: a[i] >= b[i].
inline std::uint16_t at_least(floats a, floats b) {
  detail::elements const x(a), y(b);
  unsigned bits = 0;
  for (std::size_t i = 0; i < 16; ++i) bits |= static_cast<unsigned>(x.x[i] >= y.x[i]) << i;
  return static_cast<std::uint16_t>(bits);
}

#include "backends/cpu/kernel/all.inl"

}  // namespace kvquant::cpu::portable
HWY_AFTER_NAMESPACE();
