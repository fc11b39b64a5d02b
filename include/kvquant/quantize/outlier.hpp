#pragma once
/// \file
/// Values kept sparse: what the dense code misses, in binary16.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/quantize/affine.hpp"

namespace kvquant {

/// `residual` = x − x̂ of the dense code, so that a reader may add it or leave it.
struct outlier {
  std::uint16_t index = 0;  ///< channel within a token, or element within a page
  half residual;            ///< what is added to what the code reads as
};
static_assert(sizeof(outlier) == 4);

/// What is left of `x` after its dense reconstruction. Kept finite.
KVQ_HD constexpr half residual_of(float x, float dense) noexcept {
  float const residual = x - dense;
  return to_half(residual > largest_half ? largest_half : residual < -largest_half ? -largest_half : residual);
}

/// How many of `channels` values are set aside at *each* end of a token: round(fraction / 2 · channels).
inline std::size_t outliers_per_side(double fraction, std::size_t channels) {
  require(fraction >= 0 && fraction < 1, errc::bad_value, "outlier fraction: ", fraction, ", expected [0, 1)");
  auto const per_side = static_cast<std::size_t>(std::llround(fraction / 2 * static_cast<double>(channels)));
  require(2 * per_side < channels, errc::bad_value, "outlier fraction: ", fraction, " of ", channels,
          " channels leaves none to quantize");
  return per_side;
}

/// Throws `bad_shape` unless a token and its codes have `channels` elements each, `bad_value` for what binary16 cannot
/// hold; `side` says whose they are.
inline void require_storable(std::span<float const> token, std::size_t codes, std::size_t channels, char const* side) {
  require(token.size() == channels && codes == channels, errc::bad_shape, side, ": a token of ", token.size(),
          " channels and ", codes, " codes, expected ", channels);
  for (std::size_t channel = 0; channel < channels; ++channel)
    if (!(std::fabs(token[channel]) <= largest_half)) [[unlikely]]
      throw error{errc::bad_value, text(side, ": channel ", channel, " is ", token[channel],
                                        ", expected a finite value of at most 65504")};
}

}  // namespace kvquant
