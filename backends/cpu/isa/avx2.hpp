#pragma once
/// \file
/// The words of AVX2 with FMA and F16C, and the kernels made of them.

#if defined(__x86_64__)

#include "backends/cpu/isa/target.hpp"
#include "backends/cpu/isa/x86.hpp"
#include "backends/cpu/kernel/common.hpp"
#include "backends/cpu/kernel/sealing.hpp"

KVQ_TARGET_BEGIN("avx2,fma,f16c")
namespace kvquant::cpu::avx2 {

struct floats {
  __m256 low, high;
};  ///< 16
struct ints {
  __m256i low, high;
};  ///< 16
struct shorts {
  __m256i low, high;
};  ///< 32 of 16 bits
struct bytes {
  __m256i low, high;
};  ///< 64

/// Sums of integers, `ints`, that are best kept side by side: as many as stay in registers beside what goes into them.
inline constexpr std::size_t held_sums = 2;
/// Bits of a probability: two parts of 7 bits, so that no sum of two products with 8-bit numbers leaves 16 bits.
inline constexpr int probability_bits = 14;

namespace detail {
inline __m256i load(void const* p) { return _mm256_loadu_si256(static_cast<__m256i const*>(p)); }
inline __m256i load_high(void const* p) { return _mm256_loadu_si256(static_cast<__m256i const*>(p) + 1); }
inline void store(void* p, __m256i low, __m256i high) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), low);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, high);
}
/// 16 numbers below 2^16 as 16 bits each.
inline __m256i narrow(__m256i low, __m256i high) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}
/// The low 16 bits of 16 numbers.
inline __m256i low_halves(__m256i low, __m256i high) {
  __m256i const mask = _mm256_set1_epi32(0xffff);
  return narrow(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
}
inline floats from_halves(__m256i x) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
}
/// Even (`Half` 0) or odd (1) elements of two vectors that follow each other.
template <int Half>
inline __m256 every_other(__m256 a, __m256 b) {
  __m256d const in_lanes = _mm256_castps_pd(_mm256_shuffle_ps(a, b, Half == 0 ? 0x88 : 0xdd));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(in_lanes, 0xd8));
}
/// The sums of eight vectors.
inline __m256 sum_eight(float const (*parts)[16]) {
  __m256 x[8];
  for (int i = 0; i < 8; ++i) x[i] = _mm256_add_ps(_mm256_loadu_ps(parts[i]), _mm256_loadu_ps(parts[i] + 8));
  __m256 const a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  __m256 const b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
/// [8, 4]: the elements of four vectors side by side.
inline void store_eight_transposed(float* p, __m256 a, __m256 b, __m256 c, __m256 d) {
  __m256d const ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b)),
                ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
  __m256d const cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(c, d)),
                cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
  // Row r holds elements r and 4 + r, in 128 bits each.
  __m256 const r0 = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low));
  __m256 const r1 = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low));
  __m256 const r2 = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
  __m256 const r3 = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
  _mm256_storeu_ps(p, _mm256_permute2f128_ps(r0, r1, 0x20));
  _mm256_storeu_ps(p + 8, _mm256_permute2f128_ps(r2, r3, 0x20));
  _mm256_storeu_ps(p + 16, _mm256_permute2f128_ps(r0, r1, 0x31));
  _mm256_storeu_ps(p + 24, _mm256_permute2f128_ps(r2, r3, 0x31));
}
/// 2^n for whole n ≥ -126
inline __m256 power(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
/// sum + products of neighbours, two at a time.
inline __m256i dot_pairs(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
}  // namespace detail

inline floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline floats load(float const* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline floats load(half const* p) { return detail::from_halves(detail::load(p)); }
/// The residuals of 16 slots.
inline floats load_residuals(outlier const* p) {
  return detail::from_halves(
      detail::narrow(_mm256_srli_epi32(detail::load(p), 16), _mm256_srli_epi32(detail::load_high(p), 16)));
}
inline void store(float* p, floats x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
inline floats operator+(floats a, floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline floats operator-(floats a, floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline floats operator*(floats a, floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline floats fma(floats a, floats b, floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline floats fms(floats a, floats b, floats c) {
  return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline floats max(floats a, floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline floats round(floats x) {
  constexpr int to_nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, to_nearest), _mm256_round_ps(x.high, to_nearest)};
}
/// x · 2^n for n ≥ -126
inline floats scale_by_power(floats x, floats n) { return x * floats{detail::power(n.low), detail::power(n.high)}; }
inline float sum(floats x) {
  __m256 const eight = _mm256_add_ps(x.low, x.high);
  __m128 const four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 const two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(floats x) {
  __m256 const eight = _mm256_max_ps(x.low, x.high);
  __m128 const four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 const two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
/// Even and odd elements of two vectors that follow each other.
inline void separate(floats low, floats high, floats& even, floats& odd) {
  even = {detail::every_other<0>(low.low, low.high), detail::every_other<0>(high.low, high.high)};
  odd = {detail::every_other<1>(low.low, low.high), detail::every_other<1>(high.low, high.high)};
}

/// The sums of sixteen vectors.
inline floats sum_each(float const (*parts)[16]) { return {detail::sum_eight(parts), detail::sum_eight(parts + 8)}; }

/// [16, 4]: the elements of four vectors side by side.
inline void store_transposed(float* p, floats const (&x)[4]) {
  detail::store_eight_transposed(p, x[0].low, x[1].low, x[2].low, x[3].low);
  detail::store_eight_transposed(p + 32, x[0].high, x[1].high, x[2].high, x[3].high);
}

inline ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline ints rounded(floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline floats to_floats(ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
/// high · 2^7 + low
inline ints join_parts(ints high, ints low) {
  return {_mm256_add_epi32(_mm256_slli_epi32(high.low, 7), low.low),
          _mm256_add_epi32(_mm256_slli_epi32(high.high, 7), low.high)};
}
/// x as two parts, of 7 bits each; [16] each.
inline void store_parts(ints x, std::uint8_t* high, std::uint8_t* low) {
  __m256i const both = detail::narrow(x.low, x.high);
  __m256i const parts = _mm256_packus_epi16(_mm256_srli_epi16(both, 7), _mm256_and_si256(both, _mm256_set1_epi16(127)));
  __m256i const in_order = _mm256_permute4x64_epi64(parts, 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm256_castsi256_si128(in_order));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm256_extracti128_si256(in_order, 1));
}
/// The low 16 bits of each: [16, {low, high}] under floats' names.
inline floats pair_low(ints low, ints high) {
  return {_mm256_castsi256_ps(_mm256_blend_epi16(low.low, _mm256_slli_epi32(high.low, 16), 0xaa)),
          _mm256_castsi256_ps(_mm256_blend_epi16(low.high, _mm256_slli_epi32(high.high, 16), 0xaa))};
}
/// The low 16 bits of each: [16].
inline void store_low(std::int16_t* p, ints x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), detail::low_halves(x.low, x.high));
}
/// The low 8 bits of each, a and b alternating: [16, 2].
inline void store_low_pairs(std::int8_t* p, ints a, ints b) {
  __m256i const evens = _mm256_set1_epi16(0xff);
  __m256i const first = _mm256_and_si256(detail::low_halves(a.low, a.high), evens);
  __m256i const second = _mm256_slli_epi16(detail::low_halves(b.low, b.high), 8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_or_si256(first, second));
}

inline bytes load_bytes(void const* p) { return {detail::load(p), detail::load_high(p)}; }
inline void store_bytes(void* p, bytes x) { detail::store(p, x.low, x.high); }
inline shorts load_shorts(void const* p) { return {detail::load(p), detail::load_high(p)}; }
inline void store_shorts(void* p, shorts x) { detail::store(p, x.low, x.high); }
inline bytes repeat_bytes(std::int32_t four) { return {_mm256_set1_epi32(four), _mm256_set1_epi32(four)}; }
inline bytes repeat_eight(std::uint8_t const* p) {
  long long eight;
  std::memcpy(&eight, p, sizeof(eight));
  return {_mm256_set1_epi64x(eight), _mm256_set1_epi64x(eight)};
}
inline shorts repeat_shorts(std::int32_t two) { return {_mm256_set1_epi32(two), _mm256_set1_epi32(two)}; }
inline shorts operator+(shorts a, shorts b) {
  return {_mm256_add_epi16(a.low, b.low), _mm256_add_epi16(a.high, b.high)};
}
/// Products of unsigned a and signed b, neighbours added.
inline shorts multiply_pairs(bytes a, bytes b) {
  return {_mm256_maddubs_epi16(a.low, b.low), _mm256_maddubs_epi16(a.high, b.high)};
}
/// sum + products of neighbours, two at a time.
inline ints dot(ints sum, shorts a, shorts b) {
  return {detail::dot_pairs(sum.low, a.low, b.low), detail::dot_pairs(sum.high, a.high, b.high)};
}
/// sum + products of unsigned a, below 128, and signed b, four at a time.
inline ints dot(ints sum, bytes a, bytes b) { return dot(sum, multiply_pairs(a, b), repeat_shorts(0x00010001)); }

using x86::dot_each;

/// A table of 2^Bits bytes for each place of a code in the four bits that a shuffle looks at; what the other bits are
/// does not matter.
template <int Bits>
struct code_table {
  static constexpr std::size_t places = Bits == 2 ? 2 : 1;
  __m256i at[places];

  explicit code_table(std::uint8_t const* table) {
    __m256i const entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<__m128i const*>(table)));
    for (std::size_t place = 0; place < places; ++place)
      at[place] = _mm256_shuffle_epi8(entries, detail::load(codes_at[place].data()));
  }
  /// Of codes that begin `Shift` bits up.
  template <int Shift>
  __m256i look_up(__m256i line, std::size_t place = 0) const {
    return look_up_index(_mm256_and_si256(_mm256_srli_epi16(line, Shift), _mm256_set1_epi8(15)), place);
  }
  /// In registers: compilers would rather read memory with every shuffle.
  [[gnu::always_inline]] code_table held() const {
    code_table copy = *this;
    for (__m256i& it : copy.at) asm("" : "+x"(it));
    return copy;
  }
  __m256i look_up_index(__m256i index, std::size_t place = 0) const { return _mm256_shuffle_epi8(at[place], index); }

 private:
  /// The code that the low bits of a byte hold at a place.
  static constexpr auto codes_at = [] {
    std::array<std::array<std::uint8_t, 32>, places> codes{};
    for (std::size_t place = 0; place < places; ++place)
      for (unsigned i = 0; i < 32; ++i)
        codes[place][i] = static_cast<std::uint8_t>((i & 15) >> (2 * place) & ((1u << Bits) - 1));
    return codes;
  }();
};

namespace detail {
/// Blocks 6 and 7 of 3 bits: the low two from the top of one line, the third from bit 6 or 7 of the last.
template <int Bit>
inline __m256i join_code(__m256i low_two, __m256i third) {
  return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(low_two, 6), _mm256_set1_epi8(3)),
                         _mm256_and_si256(_mm256_srli_epi16(third, Bit - 2), _mm256_set1_epi8(4)));
}

/// Half of a block: the bytes from `packed` of every line.
template <int Bits, std::size_t Block>
[[gnu::always_inline]] inline __m256i unpack_half(std::uint8_t const* packed, code_table<Bits> const& table) {
  auto const line = [&](std::size_t i) { return load(packed + 64 * i); };
  if constexpr (Bits == 1) return table.template look_up<Block>(line(0));
  if constexpr (Bits == 4) return table.template look_up<Block % 2 * 4>(line(Block / 2));
  if constexpr (Bits == 2) return table.template look_up<Block % 4 / 2 * 4>(line(Block / 4), Block % 2);
  if constexpr (Bits == 3 && Block < 6) return table.template look_up<Block % 2 * 3>(line(Block / 2));
  if constexpr (Bits == 3 && Block >= 6) return table.look_up_index(join_code<Block>(line(Block - 6), line(2)));
}
}  // namespace detail

/// What the codes of one of eight blocks read as; see `eight_blocks.hpp`.
template <std::size_t Block, int Bits>
[[gnu::always_inline]] inline bytes unpack_block(std::uint8_t const* packed, code_table<Bits> const& table) {
  return {detail::unpack_half<Bits, Block>(packed, table), detail::unpack_half<Bits, Block>(packed + 32, table)};
}

// Words of sealing.

inline floats operator/(floats a, floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
/// a · b + c, rounded after each step as outside of these instructions, whatever the compiler contracts.
inline floats multiply_then_add(floats a, floats b, floats c) {
  floats product = a * b;
  asm("" : "+x"(product.low), "+x"(product.high));
  return product + c;
}
namespace detail {
inline __m128i to_finite_halves(__m256 x) {
  __m256 const limit = _mm256_set1_ps(largest_half);
  __m256 const finite = _mm256_max_ps(_mm256_min_ps(x, limit), _mm256_sub_ps(_mm256_setzero_ps(), limit));
  return _mm256_cvtps_ph(finite, _MM_FROUND_TO_NEAREST_INT);
}
template <int Entries>
inline __m256 look_up_eight(floats table, __m256i at) {
  __m256 const low = _mm256_permutevar8x32_ps(table.low, at);
  if constexpr (Entries <= 8) return low;
  return _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(table.high, at),
                          _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
}
inline __m256i append_bit(__m256i code, __m256 x, __m256 boundary) {
  __m256i const above = _mm256_castps_si256(_mm256_cmp_ps(x, boundary, _CMP_GT_OQ));
  return _mm256_sub_epi32(_mm256_add_epi32(code, code), above);
}
}  // namespace detail
/// Binary16, kept finite.
inline void store(half* p, floats x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), detail::to_finite_halves(x.low));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + 1, detail::to_finite_halves(x.high));
}
/// The low 8 bits of each: [16].
inline void store_low(std::uint8_t* p, ints x) {
  __m256i const shorts = detail::narrow(x.low, x.high);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1)));
}
/// Elements of a table, each `at` below `Entries`.
template <int Entries>
inline floats look_up(floats table, ints at) {
  static_assert(Entries <= 16);
  return {detail::look_up_eight<Entries>(table, at.low), detail::look_up_eight<Entries>(table, at.high)};
}
/// count + (x > boundary)
inline ints count_above(ints count, floats x, floats boundary) {
  return {_mm256_sub_epi32(count.low, _mm256_castps_si256(_mm256_cmp_ps(x.low, boundary.low, _CMP_GT_OQ))),
          _mm256_sub_epi32(count.high, _mm256_castps_si256(_mm256_cmp_ps(x.high, boundary.high, _CMP_GT_OQ)))};
}
/// x > boundary ? above : below
inline floats select_above(floats below, floats x, floats boundary, floats above) {
  return {_mm256_blendv_ps(below.low, above.low, _mm256_cmp_ps(x.low, boundary.low, _CMP_GT_OQ)),
          _mm256_blendv_ps(below.high, above.high, _mm256_cmp_ps(x.high, boundary.high, _CMP_GT_OQ))};
}
/// 2 · code + (x > boundary)
inline ints append_bit(ints code, floats x, floats boundary) {
  return {detail::append_bit(code.low, x.low, boundary.low), detail::append_bit(code.high, x.high, boundary.high)};
}
/// Bit i: a[i] >= b[i].
inline std::uint16_t at_least(floats a, floats b) {
  int const low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GE_OQ));
  int const high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GE_OQ));
  return static_cast<std::uint16_t>(low | high << 8);
}

#include "backends/cpu/kernel/all.inl"

}  // namespace kvquant::cpu::avx2
KVQ_TARGET_END

#endif
