#pragma once
/// \file
/// Non-uniform levels fitted to a model's keys and values (KVQuant, section 3.3).

#include <cstdint>
#include <span>
#include <string_view>

#include "kvquant/core/config.hpp"
#include "kvquant/format/format.hpp"
#include "kvquant/format/level_table.hpp"

namespace kvquant {

/// Levels by k-means over the model's own values, one table for all channels of a layer's side. 2 to 4 bits.
template <int Bits>
struct nuq {
  ///@{
  /// As `Format` asks.
  static constexpr std::string_view name = "nuq";
  static constexpr int bits = Bits;
  static constexpr bool fitted = true;
  static constexpr bool scaled = true;
  using code_type = std::uint8_t;
  using table = level_table<Bits>;

  static table make_table(std::span<float const> levels) { return make_table(levels, levels); }
  static table make_table(std::span<float const> levels, std::span<float const> decode_levels) {
    return checked_level_table<Bits>(levels, decode_levels, name);
  }
  KVQ_HD static constexpr code_type encode(table const& levels, float x) noexcept { return levels.encode(x); }
  KVQ_HD static constexpr float decode(table const& levels, code_type code) noexcept { return levels.decode(code); }
  ///@}
};
static_assert(Format<nuq<3>>);

}  // namespace kvquant
