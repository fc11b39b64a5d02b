#pragma once
/// \file
/// How far attention over a quantized cache may be from attention over the exact tokens.
///
/// For normally distributed keys and values, two in a hundred kept sparse, and attention spread over hundreds of
/// tokens. Even levels over ±2.5 deviations miss by their step / √12, a share 5 / (√12 (2^b − 1)) of the deviation;
/// keys and values miss alike, so outputs do by √2 of that, and each further bit halves it. Fitted levels do better the
/// fewer they are. Two-bit NormalFloat has its levels at −1, 0, 0.44 and 1: that shifts the mean, which attention over
/// many tokens adds up. Binary16 misses by 2⁻¹¹ of a number at most. A band lies about a fifth above what the worst of
/// three seeds gives.

#include <array>
#include <string_view>

#include "kvquant/core/error.hpp"

namespace kvquant::contract {

struct error_band {
  std::string_view spec;
  double relative_l2;
};

inline constexpr std::array error_bands{
    error_band{"nuq2", 0.50},      error_band{"nuq3", 0.27},    error_band{"nuq4", 0.135},  //
    error_band{"nf2", 1.45},       error_band{"nf3", 0.30},     error_band{"nf4", 0.15},    //
    error_band{"int2", 0.82},      error_band{"int3", 0.32},    error_band{"int4", 0.15},   //
    error_band{"int5", 0.074},     error_band{"int6", 0.036},   error_band{"int7", 0.018},  //
    error_band{"int8", 0.0094},    error_band{"f16", 0.00043},  error_band{"nuq4/nuq2", 0.37},
    error_band{"int5/nuq3", 0.20}, error_band{"adaptive", 0.50}};

inline double error_band_of(std::string_view spec) {
  for (error_band const& band : error_bands)
    if (band.spec == spec) return band.relative_l2;
  throw error{errc::bad_format, text("no error band of ", spec)};
}

}  // namespace kvquant::contract
