#pragma once
/// \file
/// The words of AVX-512 with VBMI and VNNI, and the kernels made of them.

#if defined(__x86_64__)

#include "backends/cpu/isa/target.hpp"
#include "backends/cpu/isa/x86.hpp"
#include "backends/cpu/kernel/common.hpp"
#include "backends/cpu/kernel/sealing.hpp"

KVQ_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")
namespace kvquant::cpu::avx512 {

struct floats {
  __m512 v;
};  ///< 16
struct ints {
  __m512i v;
};  ///< 16
struct shorts {
  __m512i v;
};  ///< 32 of 16 bits
struct bytes {
  __m512i v;
};  ///< 64

/// Sums of integers, `ints`, that are best kept side by side: as many as stay in registers beside what goes into them.
inline constexpr std::size_t held_sums = 16;
/// Bits of a probability: two parts, the higher of which fills a byte.
inline constexpr int probability_bits = 15;

inline floats zero() { return {_mm512_setzero_ps()}; }
inline floats all(float x) { return {_mm512_set1_ps(x)}; }
inline floats load(float const* p) { return {_mm512_loadu_ps(p)}; }
inline floats load(half const* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(p)))}; }
/// The residuals of 16 slots.
inline floats load_residuals(outlier const* p) {
  return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_loadu_si512(p), 16)))};
}
inline void store(float* p, floats x) { _mm512_storeu_ps(p, x.v); }
inline floats operator+(floats a, floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline floats operator-(floats a, floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline floats operator*(floats a, floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline floats fma(floats a, floats b, floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline floats fms(floats a, floats b, floats c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
inline floats max(floats a, floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline floats round(floats x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/// x · 2^n
inline floats scale_by_power(floats x, floats n) { return {_mm512_scalef_ps(x.v, n.v)}; }
inline float sum(floats x) { return _mm512_reduce_add_ps(x.v); }
inline float largest(floats x) { return _mm512_reduce_max_ps(x.v); }
/// Even and odd elements of two vectors that follow each other.
inline void separate(floats low, floats high, floats& even, floats& odd) {
  __m512i const at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even = {_mm512_permutex2var_ps(low.v, at, high.v)};
  odd = {_mm512_permutex2var_ps(low.v, _mm512_add_epi32(at, _mm512_set1_epi32(1)), high.v)};
}

/// The sums of sixteen vectors.
inline floats sum_each(float const (*parts)[16]) {
  // Halves of 16 are added, then of 8, 4 and 2, two vectors at a time; this order leaves the sums in theirs.
  constexpr int order[16] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};
  __m512 x[16];
  for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_ps(parts[order[i]]);
  for (int i = 0; i < 8; ++i)
    x[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 8], 0x44), _mm512_shuffle_f32x4(x[i], x[i + 8], 0xee));
  for (int i = 0; i < 4; ++i)
    x[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd));
  for (int i = 0; i < 2; ++i) {
    __m512d const a = _mm512_castps_pd(x[i]), b = _mm512_castps_pd(x[i + 2]);
    x[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  return {_mm512_add_ps(_mm512_shuffle_ps(x[0], x[1], 0x88), _mm512_shuffle_ps(x[0], x[1], 0xdd))};
}

/// [16, 4]: the elements of four vectors side by side.
inline void store_transposed(float* p, floats const (&x)[4]) {
  __m512d const ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(x[0].v, x[1].v));
  __m512d const ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(x[0].v, x[1].v));
  __m512d const cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(x[2].v, x[3].v));
  __m512d const cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(x[2].v, x[3].v));
  // Row r holds elements r, 4 + r, 8 + r and 12 + r, in 128 bits each; 4 x 4 of them are transposed.
  __m512 const r0 = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
  __m512 const r1 = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
  __m512 const r2 = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
  __m512 const r3 = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
  __m512 const r01_even = _mm512_shuffle_f32x4(r0, r1, 0x88), r01_odd = _mm512_shuffle_f32x4(r0, r1, 0xdd);
  __m512 const r23_even = _mm512_shuffle_f32x4(r2, r3, 0x88), r23_odd = _mm512_shuffle_f32x4(r2, r3, 0xdd);
  _mm512_storeu_ps(p, _mm512_shuffle_f32x4(r01_even, r23_even, 0x88));
  _mm512_storeu_ps(p + 16, _mm512_shuffle_f32x4(r01_odd, r23_odd, 0x88));
  _mm512_storeu_ps(p + 32, _mm512_shuffle_f32x4(r01_even, r23_even, 0xdd));
  _mm512_storeu_ps(p + 48, _mm512_shuffle_f32x4(r01_odd, r23_odd, 0xdd));
}

inline ints zero_ints() { return {_mm512_setzero_si512()}; }
inline ints rounded(floats x) { return {_mm512_cvtps_epi32(x.v)}; }
inline floats to_floats(ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
/// high · 2^7 + low
inline ints join_parts(ints high, ints low) { return {_mm512_add_epi32(_mm512_slli_epi32(high.v, 7), low.v)}; }
/// x as two parts, of 7 bits the lower one; [16] each.
inline void store_parts(ints x, std::uint8_t* high, std::uint8_t* low) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srli_epi32(x.v, 7)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low),
                   _mm512_cvtepi32_epi8(_mm512_and_si512(x.v, _mm512_set1_epi32(127))));
}
/// The low 16 bits of each: [16, {low, high}] under floats' names.
inline floats pair_low(ints low, ints high) {
  return {_mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaaaaaa, low.v, _mm512_slli_epi32(high.v, 16)))};
}
/// The low 16 bits of each: [16].
inline void store_low(std::int16_t* p, ints x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x.v));
}
/// The low 8 bits of each, a and b alternating: [16, 2].
inline void store_low_pairs(std::int8_t* p, ints a, ints b) {
  __m512i const both =
      _mm512_ternarylogic_epi32(_mm512_set1_epi32(0xff), a.v, _mm512_slli_epi32(b.v, 8), 0xca);  // mask ? a : b
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(both));
}

inline bytes load_bytes(void const* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bytes(void* p, bytes x) { _mm512_storeu_si512(p, x.v); }
inline shorts load_shorts(void const* p) { return {_mm512_loadu_si512(p)}; }
inline void store_shorts(void* p, shorts x) { _mm512_storeu_si512(p, x.v); }
inline bytes repeat_bytes(std::int32_t four) { return {_mm512_set1_epi32(four)}; }
inline bytes repeat_eight(std::uint8_t const* p) {
  long long eight;
  std::memcpy(&eight, p, sizeof(eight));
  return {_mm512_set1_epi64(eight)};
}
inline shorts repeat_shorts(std::int32_t two) { return {_mm512_set1_epi32(two)}; }
inline shorts operator+(shorts a, shorts b) { return {_mm512_add_epi16(a.v, b.v)}; }
/// Products of unsigned a and signed b, neighbours added.
inline shorts multiply_pairs(bytes a, bytes b) { return {_mm512_maddubs_epi16(a.v, b.v)}; }
/// sum + products of neighbours, two at a time.
inline ints dot(ints sum, shorts a, shorts b) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }
/// sum + products of unsigned a and signed b, four at a time.
inline ints dot(ints sum, bytes a, bytes b) { return {_mm512_dpbusd_epi32(sum.v, a.v, b.v)}; }

using x86::dot_each;

/// A table of 2^Bits bytes for each place of a code in the six bits that a permute looks at; what the other bits are
/// does not matter.
template <int Bits>
struct code_table {
  static constexpr std::size_t places = Bits == 4 ? 2 : 3;
  bytes at[places];

  explicit code_table(std::uint8_t const* table) {
    __m512i const entries = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<__m128i const*>(table)));
    for (std::size_t place = 0; place < places; ++place)
      at[place] = {_mm512_permutexvar_epi8(load_bytes(codes_at[place].data()).v, entries)};
  }
  bytes look_up(std::size_t place, __m512i codes) const { return {_mm512_permutexvar_epi8(codes, at[place].v)}; }
  /// In registers: compilers would rather read memory with every permute.
  [[gnu::always_inline]] code_table held() const {
    code_table copy = *this;
    for (bytes& it : copy.at) asm("" : "+v"(it.v));
    return copy;
  }

 private:
  /// The code that six bits hold at a place.
  static constexpr unsigned code_of(std::size_t place, unsigned six) {
    if (Bits == 3 && place == 2) return (six >> 4 & 3) | (six >> 3 & 1) << 2;
    unsigned const shift = Bits == 4 ? 2 : Bits;
    return six >> (shift * place) & ((1u << Bits) - 1);
  }
  static constexpr auto codes_at = [] {
    std::array<std::array<std::uint8_t, 64>, places> codes{};
    for (std::size_t place = 0; place < places; ++place)
      for (unsigned six = 0; six < 64; ++six) codes[place][six] = static_cast<std::uint8_t>(code_of(place, six));
    return codes;
  }();
};

/// What the codes of one of eight blocks read as; see `eight_blocks.hpp`.
template <std::size_t Block, int Bits>
[[gnu::always_inline]] inline bytes unpack_block(std::uint8_t const* packed, code_table<Bits> const& table) {
  auto const line = [&](std::size_t i) { return load_bytes(packed + 64 * i).v; };
  if constexpr (Bits == 1)
    return table.look_up(Block % 3, Block < 3 ? line(0) : _mm512_srli_epi16(line(0), Block / 3 * 3));
  if constexpr (Bits == 4)
    return table.look_up(Block % 2, Block % 2 == 0 ? line(Block / 2) : _mm512_srli_epi16(line(Block / 2), 2));
  if constexpr (Bits == 2)
    return Block % 4 < 3 ? table.look_up(Block % 4, line(Block / 4))
                         : table.look_up(2, _mm512_srli_epi16(line(Block / 4), 2));
  if constexpr (Bits == 3 && Block < 6) return table.look_up(Block % 2, line(Block / 2));
  if constexpr (Bits == 3 && Block >= 6) {
    // Bits 4 and 5 of the index: the code's low two; bit 3: its third.
    __m512i const low_two = _mm512_set1_epi8(0x30), own = _mm512_srli_epi16(line(Block - 6), 2),
                  third = _mm512_srli_epi16(line(2), Block - 3);
    return table.look_up(2, _mm512_ternarylogic_epi32(low_two, own, third, 0xca));
  }
}

// Words of sealing.

inline floats operator/(floats a, floats b) { return {_mm512_div_ps(a.v, b.v)}; }
/// a · b + c, rounded after each step as outside of these instructions, whatever the compiler contracts.
inline floats multiply_then_add(floats a, floats b, floats c) {
  __m512 product = _mm512_mul_ps(a.v, b.v);
  asm("" : "+v"(product));
  return {_mm512_add_ps(product, c.v)};
}
/// Binary16, kept finite.
inline void store(half* p, floats x) {
  __m512 const limit = _mm512_set1_ps(largest_half);
  __m512 const finite = _mm512_max_ps(_mm512_min_ps(x.v, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(finite, _MM_FROUND_TO_NEAREST_INT));
}
/// The low 8 bits of each: [16].
inline void store_low(std::uint8_t* p, ints x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v));
}
/// Elements of a table, each `at` below `Entries`.
template <int Entries>
inline floats look_up(floats table, ints at) {
  static_assert(Entries <= 16);
  return {_mm512_permutexvar_ps(at.v, table.v)};
}
/// count + (x > boundary)
inline ints count_above(ints count, floats x, floats boundary) {
  return {
      _mm512_mask_add_epi32(count.v, _mm512_cmp_ps_mask(x.v, boundary.v, _CMP_GT_OQ), count.v, _mm512_set1_epi32(1))};
}
/// x > boundary ? above : below
inline floats select_above(floats below, floats x, floats boundary, floats above) {
  return {_mm512_mask_mov_ps(below.v, _mm512_cmp_ps_mask(x.v, boundary.v, _CMP_GT_OQ), above.v)};
}
/// 2 · code + (x > boundary)
inline ints append_bit(ints code, floats x, floats boundary) {
  __m512i const twice = _mm512_add_epi32(code.v, code.v);
  return {_mm512_mask_add_epi32(twice, _mm512_cmp_ps_mask(x.v, boundary.v, _CMP_GT_OQ), twice, _mm512_set1_epi32(1))};
}
/// Bit i: a[i] >= b[i].
inline std::uint16_t at_least(floats a, floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }

#include "backends/cpu/kernel/all.inl"

}  // namespace kvquant::cpu::avx512
KVQ_TARGET_END

#endif
