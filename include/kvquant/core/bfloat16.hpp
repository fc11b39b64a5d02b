#pragma once
/// \file
/// bfloat16 as a storage type: the upper half of a binary32 number.

#include <cstdint>

#include "kvquant/core/config.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant {

/// Storage of a bfloat16 number: the upper half of a float.
struct bfloat16 {
  std::uint16_t bits = 0;  ///< sign, 8 of exponent, 7 of fraction
  friend constexpr bool operator==(bfloat16, bfloat16) = default;
};
static_assert(sizeof(bfloat16) == 2);

/// Exact.
KVQ_HD constexpr float to_float(bfloat16 x) noexcept {
  return detail::bits_as<float>(static_cast<std::uint32_t>(x.bits) << 16);
}

}  // namespace kvquant
