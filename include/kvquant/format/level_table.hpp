#pragma once
/// \file
/// Nearest-level search: what every datatype that is a list of levels has in common.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant {

/// The levels of a `Bits`-bit code.
template <int Bits>
struct level_table {
  static_assert(Bits >= 1 && Bits <= 8);
  /// How many.
  static constexpr int levels = 1 << Bits;

  float level[levels];         ///< what a code reads as
  float boundary[levels - 1];  ///< never falling: the code of x is how many boundaries lie below x

  /// Free of branches. Few boundaries are all compared, which vectorises over a loop of values; many are bisected.
  KVQ_HD constexpr std::uint8_t encode(float x) const noexcept {
    unsigned code = 0;
    if constexpr (Bits <= 4)
      for (int i = 0; i < levels - 1; ++i) code += x > boundary[i];
    else
      for (unsigned step = levels / 2; step > 0; step /= 2) code += (x > boundary[code + step - 1]) * step;
    return static_cast<std::uint8_t>(code);
  }
  /// A load. `code` is below `levels`.
  KVQ_HD constexpr float decode(std::uint8_t code) const noexcept { return level[code]; }
};

namespace detail {

constexpr float next_below(float x) {
  if (x == 0) return -std::numeric_limits<float>::denorm_min();
  auto const bits = bits_as<std::uint32_t>(x);
  return bits_as<float>(x > 0 ? bits - 1 : bits + 1);
}

/// The largest float that is at least as near to `lower` as to `upper`.
constexpr float last_nearer_to(float lower, float upper) {
  double const a = lower, b = upper, sum = a + b;
  double const b_in_sum = sum - a, rest = (a - (sum - b_in_sum)) + (b - b_in_sum);  // a + b = sum + rest (Knuth)
  double const midpoint = sum / 2;
  auto const rounded = static_cast<float>(midpoint);
  bool const is_beyond = rounded > midpoint || (!(rounded < midpoint) && rest < 0);
  return is_beyond ? next_below(rounded) : rounded;
}

inline void require_levels(std::span<float const> levels, std::size_t count, std::string_view what) {
  require(levels.size() == count, errc::bad_shape, what, ": ", levels.size(), " levels, expected ", count);
  for (std::size_t i = 0; i < count; ++i) {
    require(std::isfinite(levels[i]), errc::bad_value, what, ": level ", i, " is ", levels[i],
            ", expected a finite number");
    require(i == 0 || levels[i - 1] <= levels[i], errc::bad_value, what, ": level ", i, " is ", levels[i],
            ", expected no less than the one before, ", levels[i == 0 ? 0 : i - 1]);
  }
}

}  // namespace detail

/// Values are compared with `levels`, codes read as `decode_levels`. Levels never fall; of equal ones only the first is
/// ever encoded.
template <int Bits>
constexpr level_table<Bits> make_level_table(std::span<float const, (1u << Bits)> levels,
                                             std::span<float const, (1u << Bits)> decode_levels) {
  level_table<Bits> table{};
  float boundary = std::numeric_limits<float>::infinity();  // between this level and the next one that differs
  for (std::size_t i = levels.size(); i-- > 0;) {
    table.level[i] = decode_levels[i];
    if (i + 1 == levels.size()) continue;
    if (levels[i] != levels[i + 1]) boundary = detail::last_nearer_to(levels[i], levels[i + 1]);
    table.boundary[i] = boundary;
  }
  return table;
}

/// The same of levels that come from outside. Throws `bad_shape` or `bad_value`, naming `what` and the level.
template <int Bits>
level_table<Bits> checked_level_table(std::span<float const> levels, std::span<float const> decode_levels,
                                      std::string_view what) {
  constexpr std::size_t count = 1u << Bits;
  detail::require_levels(levels, count, what);
  detail::require_levels(decode_levels, count, what);
  return make_level_table<Bits>(levels.first<count>(), decode_levels.first<count>());
}

}  // namespace kvquant
