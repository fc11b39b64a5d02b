#pragma once
/// \file
/// Evenly spaced levels: integers, scaled.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvquant/core/config.hpp"
#include "kvquant/format/format.hpp"
#include "kvquant/format/level_table.hpp"

namespace kvquant {

namespace detail {
/// From −1 to 1, both included; there is no 0.
template <int Bits>
constexpr level_table<Bits> even_level_table() {
  std::array<float, (1u << Bits)> levels{};
  auto const last = static_cast<double>(levels.size() - 1);
  for (std::size_t i = 0; i < levels.size(); ++i)
    levels[i] = static_cast<float>((2 * static_cast<double>(i) - last) / last);
  return make_level_table<Bits>(levels, levels);
}
}  // namespace detail

/// Levels at equal distances: what integers of `Bits` bits can say. 2 to 8 bits.
template <int Bits>
struct uniform {
  ///@{
  /// As `Format` asks.
  static constexpr std::string_view name = "int";
  static constexpr int bits = Bits;
  static constexpr bool fitted = false;
  static constexpr bool scaled = true;
  using code_type = std::uint8_t;
  using table = level_table<Bits>;

  static constexpr table default_table() {
    constexpr table levels = detail::even_level_table<Bits>();
    return levels;
  }
  KVQ_HD static constexpr code_type encode(table const& levels, float x) noexcept { return levels.encode(x); }
  KVQ_HD static constexpr float decode(table const& levels, code_type code) noexcept { return levels.decode(code); }
  ///@}
};
static_assert(Format<uniform<8>>);

}  // namespace kvquant
