#pragma once
/// \file
/// IEEE 754 binary16 as a storage type, so that the core depends on no device header.

#include <cstdint>

#include "kvquant/core/config.hpp"

namespace kvquant {

namespace detail {
/// `std::bit_cast`, which nvcc does not let device code call.
template <class To, class From>
KVQ_HD constexpr To bits_as(From from) noexcept {
  return __builtin_bit_cast(To, from);
}
}  // namespace detail

/// Storage of a binary16 number; arithmetic is in float.
struct half {
  std::uint16_t bits = 0;  ///< sign, 5 of exponent, 10 of fraction
  friend constexpr bool operator==(half, half) = default;
};
static_assert(sizeof(half) == 2);

/// Exact for every binary16 value, subnormals, infinities and NaN included. Free of branches, so loops vectorise.
KVQ_HD constexpr float to_float(half h) noexcept {
  std::uint32_t const sign = static_cast<std::uint32_t>(h.bits & 0x8000u) << 16;
  std::int32_t const shifted = (h.bits & 0x7fff) << 13;  // the exponent, still biased by 15, where binary32 has its own
  std::int32_t const normal = shifted + ((127 - 15) << 23);
  // With the exponent of 2^-14 in place a subnormal m * 2^-24 reads as 2^-14 + m * 2^-24; the difference is exact.
  float const subnormal = detail::bits_as<float>(normal + (1 << 23)) - 0x1p-14f;
  // Masks rather than ?:, which some compilers turn back into branches.
  std::int32_t const is_subnormal = -static_cast<std::int32_t>(shifted < (1 << 23));
  std::int32_t const is_special = -static_cast<std::int32_t>(shifted >= (0x1f << 23));
  std::int32_t const finite = (detail::bits_as<std::int32_t>(subnormal) & is_subnormal) | (normal & ~is_subnormal);
  return detail::bits_as<float>(static_cast<std::uint32_t>(finite | (0x7f800000 & is_special)) | sign);
}

/// Rounds to nearest, ties to even; overflows to infinity; keeps NaN a NaN.
KVQ_HD constexpr half to_half(float x) noexcept {
  auto const wide = detail::bits_as<std::uint32_t>(x);
  auto const sign = static_cast<std::uint16_t>((wide >> 16) & 0x8000u);
  std::uint32_t const magnitude = wide & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // >= 65520 rounds up to 2^16
  if (magnitude < 0x38800000u) {                                                      // below 2^-14: subnormal
    // Adding 0.5 puts the unit of binary16's subnormals (2^-24) in the last place of binary32, whose own rounding is
    // the one that is wanted.
    float const aligned = detail::bits_as<float>(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (detail::bits_as<std::uint32_t>(aligned) - 0x3f000000u))};
  }
  std::uint32_t const odd = (magnitude >> 13) & 1u;
  std::uint32_t const rounded = magnitude - (112u << 23) + 0xfffu + odd;
  return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
}

/// `x` as it reads after being stored in binary16.
KVQ_HD constexpr float round_to_half(float x) noexcept { return to_float(to_half(x)); }

}  // namespace kvquant
