#pragma once
/// \file
/// Which tokens a cache can hold: those of binary16 numbers.

#include <cmath>
#include <concepts>
#include <cstddef>
#include <span>

#include "kvquant/core/bfloat16.hpp"
#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/quantize/affine.hpp"

namespace kvquant {

/// What tokens may come as.
template <class T>
concept TokenElement = std::same_as<T, float> || std::same_as<T, half> || std::same_as<T, bfloat16>;

namespace detail {

KVQ_HD constexpr float loaded(float x) { return x; }
KVQ_HD constexpr float loaded(half x) { return to_float(x); }
KVQ_HD constexpr float loaded(bfloat16 x) { return to_float(x); }

/// What the cache makes of them.
KVQ_HD constexpr half stored(float x) { return to_half(x); }
KVQ_HD constexpr half stored(half x) { return x; }
KVQ_HD constexpr half stored(bfloat16 x) { return to_half(to_float(x)); }

// Free of branches, so that loops vectorise.
template <TokenElement T>
bool all_storable(std::span<T const> row) {
  int others = 0;
  for (T const x : row) others |= !(std::fabs(loaded(x)) <= largest_half);
  return others == 0;
}
inline bool all_storable(std::span<half const> row) {
  unsigned sums = 0;  // bit 15: some exponent has all its bits set
  for (half const x : row) sums |= (x.bits & 0x7fffu) + 0x400u;
  return sums < 0x8000u;
}

}  // namespace detail

/// Throws `bad_value` naming token and channel of what binary16 cannot hold; `what` says whose they are.
template <class T>
void require_storable_rows(view2d<T> x, char const* what) {
  for (std::size_t row = 0; row < x.rows; ++row) {
    if (detail::all_storable(std::span<T const>(x.row(row)))) [[likely]]
      continue;
    for (std::size_t channel = 0; channel < x.cols; ++channel)
      if (float const value = detail::loaded(x(row, channel)); !(std::fabs(value) <= largest_half))
        throw error{errc::bad_value, text("append: ", what, ": token ", row, ", channel ", channel, " is ", value,
                                          ", expected a finite value of at most 65504")};
  }
}

}  // namespace kvquant
