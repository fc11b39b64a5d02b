#pragma once
/// \file
/// Levels at the quantiles of the normal distribution (QLoRA, arXiv 2305.14314, section 3).

#include <array>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <string_view>

#include "kvquant/core/config.hpp"
#include "kvquant/format/format.hpp"
#include "kvquant/format/level_table.hpp"

namespace kvquant {

namespace detail {

/// e^x by the power series of x / 16, for −8 ≤ x ≤ 0.
constexpr double exp_by_series(double x) {
  double term = 1, sum = 1;
  for (int n = 1; n <= 16; ++n) sum += term *= x / 16 / n;
  for (int i = 0; i < 4; ++i) sum *= sum;
  return sum;
}

constexpr double normal_density(double x) {
  return exp_by_series(-x * x / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
}

/// Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/(3·5) + …), for 0 ≤ x ≤ 4.
constexpr double normal_distribution(double x) {
  double term = x, sum = x;
  for (int n = 1; n <= 48; ++n) sum += term *= x * x / (2 * n + 1);
  return 0.5 + normal_density(x) * sum;
}

/// Φ⁻¹(p), for 1/2 ≤ p ≤ 0.999. Φ is concave there, so Newton's steps from 0 rise to the root and never pass it.
constexpr double normal_quantile(double p) {
  double x = 0;
  for (int i = 0; i < 11; ++i) x += (p - normal_distribution(x)) / normal_density(x);
  return x;
}

/// 2^(Bits−1) levels above zero and one fewer below it, each side at evenly spaced probabilities from 1/2 (which gives
/// the exact zero) to 1 − δ, scaled to [−1, 1]. δ is the mean of half a step of 2^Bits and of 2^Bits − 1 equal parts,
/// as for the published 4-bit levels.
template <int Bits>
constexpr level_table<Bits> normal_level_table() {
  static_assert(Bits >= 2, "a level on either side of zero needs two bits");
  constexpr std::size_t above = 1u << (Bits - 1), below = above - 1;
  constexpr double parts = 2.0 * above;
  constexpr double outermost = 1 - (1 / parts + 1 / (parts - 1)) / 4;
  constexpr double largest = normal_quantile(outermost);
  auto const level = [](std::size_t i, std::size_t count) {
    auto const share = static_cast<double>(i) / static_cast<double>(count);
    return static_cast<float>(normal_quantile(0.5 + share * (outermost - 0.5)) / largest);
  };
  std::array<float, 2 * above> levels{};
  for (std::size_t i = 1; i <= below; ++i) levels[below - i] = -level(i, below);
  for (std::size_t i = 1; i <= above; ++i) levels[below + i] = level(i, above);
  return make_level_table<Bits>(levels, levels);
}

}  // namespace detail

/// Levels at the quantiles of a normal distribution, for any model; zero is one of them. 2 to 4 bits.
template <int Bits>
struct normal_float {
  ///@{
  /// As `Format` asks.
  static constexpr std::string_view name = "nf";
  static constexpr int bits = Bits;
  static constexpr bool fitted = false;
  static constexpr bool scaled = true;
  using code_type = std::uint8_t;
  using table = level_table<Bits>;

  static constexpr table default_table() {
    constexpr table levels = detail::normal_level_table<Bits>();
    return levels;
  }
  KVQ_HD static constexpr code_type encode(table const& levels, float x) noexcept { return levels.encode(x); }
  KVQ_HD static constexpr float decode(table const& levels, code_type code) noexcept { return levels.decode(code); }
  ///@}
};
static_assert(Format<normal_float<4>>);

}  // namespace kvquant
