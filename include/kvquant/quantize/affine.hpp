#pragma once
/// \file
/// The affine map between a range of values and the codebook's [−1, 1].

#include "kvquant/core/config.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant {

/// x = scale · x' + zero. The zero stays floating point: rounded to a code it ruins channels of one sign.
struct affine {
  float scale = 1.0f;  ///< never 0
  float zero = 0.0f;   ///< what 0 reads as

  /// To where levels are.
  KVQ_HD constexpr float normalise(float x) const noexcept { return (x - zero) / scale; }
  /// And back.
  KVQ_HD constexpr float restore(float x) const noexcept { return scale * x + zero; }
};

/// The range that a channel (keys) or a token (values) is quantized over, as stored: 32 bits.
struct value_range {
  half lower;  ///< of what is normalised to [−1, 1]
  half upper;  ///< at least `lower`

  ///@{
  /// As a float.
  KVQ_HD constexpr float low() const noexcept { return to_float(lower); }
  KVQ_HD constexpr float high() const noexcept { return to_float(upper); }
  ///@}
};
static_assert(sizeof(value_range) == 4);

/// Of binary16.
inline constexpr float largest_half = 65504.0f;

/// The range of binary16 values nearest to [lower, upper], kept finite. Zeros are +0: which of equal values an order
/// names first makes no difference.
KVQ_HD constexpr value_range make_range(float lower, float upper) noexcept {
  auto const stored = [](float x) {
    half const nearest = to_half(x > largest_half ? largest_half : x < -largest_half ? -largest_half : x);
    return nearest.bits == 0x8000u ? half{} : nearest;
  };
  return {stored(lower), stored(upper)};
}

/// Takes [lower, upper] to [−1, 1]. A range of one value gets the smallest normal scale, so that everything decodes to
/// that value.
KVQ_HD constexpr affine affine_of(value_range range) noexcept {
  float const half_width = (range.high() - range.low()) / 2;
  float const smallest = 0x1p-126f;  // normal; nvcc lets no numeric_limits into device code
  return {half_width > smallest ? half_width : smallest, (range.high() + range.low()) / 2};
}

}  // namespace kvquant
