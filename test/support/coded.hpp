#pragma once
/// \file
/// Helpers for holding quantizers against the double reference.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kvquant/core/view.hpp"
#include "kvquant/format/formats.hpp"
#include "kvquant/quantize/affine.hpp"
#include "kvquant/reference/quantize.hpp"

namespace kvquant::test {

/// Formats that code in levels: all but the passthrough.
using coded_formats = type_list<nuq<2>, nuq<3>, nuq<4>, normal_float<2>, normal_float<3>, normal_float<4>, uniform<2>,
                                uniform<3>, uniform<4>, uniform<5>, uniform<8>>;

/// A table of random rising levels for fitted formats, with decode levels a little off; the fixed one for the others.
template <Format F>
typename F::table random_table(std::uint64_t seed) {
  if constexpr (F::fitted) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::vector<float> levels(std::size_t{1} << F::bits), decode;
    for (float& level : levels) level = uniform(random);
    std::sort(levels.begin(), levels.end());
    for (float const level : levels) decode.push_back(1.05f * level + 0.01f);
    return F::make_table(levels, decode);
  } else {
    return F::default_table();
  }
}

/// The encode levels are recovered by bisection: whatever a format's table looks like, `encode` is a step function.
template <Format F>
double boundary_after(typename F::table const& table, int code) {
  float low = -4, high = 4;
  while (true) {
    float const middle = low + (high - low) / 2;
    if (middle == low || middle == high) return high;
    (static_cast<int>(F::encode(table, middle)) <= code ? low : high) = middle;
  }
}

template <Format F>
reference::levels levels_of(typename F::table const& table) {
  int const count = 1 << F::bits;
  reference::levels out{reference::vector(count), reference::vector(count)};
  for (int code = 0; code < count; ++code)
    out.decode(code) = F::decode(table, static_cast<typename F::code_type>(code));
  if constexpr (F::fitted) {
    for (int code = 0; code < count; ++code) out.encode(code) = (out.decode(code) - 0.01) / 1.05;
  } else {
    out.encode = out.decode;
  }
  return out;
}

/// Codes are equal, or the value lies on the boundary between them as far as single precision can tell.
template <Format F>
void check_code(typename F::table const& table, typename F::code_type code, int expected, double normalised) {
  if (static_cast<int>(code) == expected) return;
  REQUIRE(std::abs(static_cast<int>(code) - expected) == 1);
  double const boundary = boundary_after<F>(table, std::min(static_cast<int>(code), expected));
  CHECK(std::abs(normalised - boundary) < 1e-5 * (1 + std::abs(normalised)));
}

/// Each channel's range without its smallest and largest value.
inline std::vector<value_range> middle_ranges(view2d<float const> x) {
  std::vector<value_range> ranges;
  for (std::size_t c = 0; c < x.cols; ++c) {
    std::vector<float> column;
    for (std::size_t t = 0; t < x.rows; ++t) column.push_back(x(t, c));
    std::sort(column.begin(), column.end());
    ranges.push_back(make_range(column[1], column[column.size() - 2]));
  }
  return ranges;
}

}  // namespace kvquant::test
