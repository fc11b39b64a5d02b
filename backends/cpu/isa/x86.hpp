#pragma once
/// \file
/// The intrinsics of x86-64, and what needs only those that all of them have.

#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
// g++ 12 takes the intrinsics' own undefined operands for ours (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#include "backends/cpu/kernel/common.hpp"

namespace kvquant::cpu::x86 {

/// Products of `Lanes` pairs, 1 or 4, with one pair, each added up: [Lanes, 2] and [2].
template <std::size_t Lanes>
[[gnu::always_inline]] inline slot_floats<Lanes> dot_each(std::int16_t const* pairs, std::int16_t const* by) {
  std::int32_t first, both;
  std::memcpy(&first, pairs, sizeof(first));
  std::memcpy(&both, by, sizeof(both));
  if constexpr (Lanes == 1)
    return _mm_cvtss_f32(_mm_cvtepi32_ps(_mm_madd_epi16(_mm_cvtsi32_si128(first), _mm_cvtsi32_si128(both))));
  else
    return _mm_cvtepi32_ps(
        _mm_madd_epi16(_mm_load_si128(reinterpret_cast<__m128i const*>(pairs)), _mm_set1_epi32(both)));
}

}  // namespace kvquant::cpu::x86
