#pragma once
/// \file
/// No quantization beyond binary16: what everything else is compared with.

#include <cstdint>
#include <string_view>

#include "kvquant/core/config.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/format/format.hpp"

namespace kvquant {

/// A code is the bits of a binary16 number, kept finite.
struct passthrough {
  ///@{
  /// As `Format` asks.
  static constexpr std::string_view name = "f";
  static constexpr int bits = 16;
  static constexpr bool fitted = false;
  static constexpr bool scaled = false;
  using code_type = std::uint16_t;
  ///@}
  /// Nothing to look up.
  struct table {};

  ///@{
  /// As `Format` asks; values beyond ±65504 become ±65504.
  static constexpr table default_table() { return {}; }
  KVQ_HD static constexpr code_type encode(table const&, float x) noexcept {
    constexpr float largest = 65504.0f;
    return to_half(x > largest ? largest : x < -largest ? -largest : x).bits;
  }
  KVQ_HD static constexpr float decode(table const&, code_type code) noexcept { return to_float(half{code}); }
  ///@}
};
static_assert(Format<passthrough>);

}  // namespace kvquant
