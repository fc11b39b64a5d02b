#pragma once
/// \file
/// Rotation in extended precision, for holding RoPE against.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvquant/rope/rope_config.hpp"

namespace kvquant::test {

struct exact_angle {
  long double cos, sin;
};

/// Of the exact product of the two. It is carried as a sum of two numbers and reduced by a 2π of 107 bits (Cody and
/// Waite): at 2^37 radians the error is still that of one rounding near π.
inline exact_angle exact_angle_of(std::int64_t position, double frequency) {
  constexpr long double turn = 0x1.921fb54442d18p+2L, turn_rest = 0x1.1a62633145c07p-52L;
  auto const p = static_cast<long double>(position), f = static_cast<long double>(frequency);
  long double const angle = p * f, rest = std::fma(p, f, -angle), turns = std::nearbyint(angle / turn);
  long double const reduced = std::fma(-turns, turn_rest, std::fma(-turns, turn, angle)) + rest;
  return {std::cos(reduced), std::sin(reduced)};
}

/// One head turned pair by pair, as the definition says; `factor` multiplies what is rotated.
template <class T>
std::vector<double> exactly_rotated(std::span<T const> head, rope_pairing pairing, std::span<double const> frequencies,
                                    std::int64_t position, double factor = 1) {
  std::vector<double> out(head.begin(), head.end());
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    bool const split = pairing == rope_pairing::half_split;
    std::size_t const a = split ? i : 2 * i, b = split ? i + frequencies.size() : 2 * i + 1;
    auto const [c, s] = exact_angle_of(position, frequencies[i]);
    auto const x = static_cast<long double>(head[a]), y = static_cast<long double>(head[b]);
    out[a] = static_cast<double>(factor * (x * c - y * s));
    out[b] = static_cast<double>(factor * (x * s + y * c));
  }
  return out;
}

}  // namespace kvquant::test
