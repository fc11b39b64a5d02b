#pragma once
/// \file
/// Codes whose width is chosen channel by channel, so that bits go where the loss feels them (docs/design.md). Widths,
/// levels and ranges of both sides are static: they come from calibration.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/format/format.hpp"
#include "kvquant/format/level_table.hpp"

namespace kvquant {

/// Codes of 1 to 4 bits, the same number for all tokens of a channel, chosen by calibration (`calibrate/allocate.hpp`).
struct adaptive {
  ///@{
  /// As `Format` asks; its range is its channel's.
  static constexpr std::string_view name = "adaptive";
  static constexpr int bits = 4;  ///< of the widest channels; the narrowest have 1
  static constexpr bool fitted = true;
  static constexpr bool scaled = true;
  static constexpr bool by_channel = true;
  using code_type = std::uint8_t;
  using table = level_table<bits>;
  ///@}

  /// 2, 4, 8 or 16 levels. Codes stay below their number.
  static table make_table(std::span<float const> levels) { return make_table(levels, levels); }
  /// The same with other levels to be read than to be compared with.
  static table make_table(std::span<float const> levels, std::span<float const> decode_levels) {
    constexpr std::size_t most = std::size_t{1} << bits;
    std::size_t const count = levels.size();
    require(count >= 2 && count <= most && std::has_single_bit(count), errc::bad_shape, name, ": ", count,
            " levels, expected 2, 4, 8 or 16");
    detail::require_levels(levels, count, name);
    detail::require_levels(decode_levels, count, name);
    std::array<float, most> encode, decode;  // of equal levels only the first is ever encoded
    for (std::size_t i = 0; i < most; ++i) {
      encode[i] = levels[i < count ? i : count - 1];
      decode[i] = decode_levels[i < count ? i : count - 1];
    }
    return make_level_table<bits>(encode, decode);
  }
  ///@{
  /// As `Format` asks.
  KVQ_HD static constexpr code_type encode(table const& levels, float x) noexcept { return levels.encode(x); }
  KVQ_HD static constexpr float decode(table const& levels, code_type code) noexcept { return levels.decode(code); }
  ///@}
};
static_assert(Format<adaptive>);

}  // namespace kvquant
