#pragma once
/// \file
/// How the paper counts a cache (KVQuant, arXiv 2401.18079).

#include <cstddef>
#include <cstdint>

#include "kvquant/core/half.hpp"
#include "kvquant/quantize/spec.hpp"

namespace kvquant::plan {

/// Codes of as many bits for keys and values; a scale and a zero in binary16 for the values of each token and layer;
/// for each outlier a number in binary16 and an index of 16 bits; where there are outliers, a pointer of 32 bits for
/// each token, layer and side, as compressed sparse rows have. Of 16 bits nothing but the numbers. The paper does not
/// spell this out: it is the rule that gives all figures of its text and tables, rounded to 0.1 GiB.
inline double bytes_by_the_paper(model_shape const& shape, double tokens, int bits, double outlier_fraction) {
  double const rows = tokens * shape.layers, elements = 2 * rows * shape.kv_channels();
  double const codes = elements * bits / 8;
  if (bits == 16) return codes;
  double const ranges = rows * 2 * sizeof(half);
  if (outlier_fraction == 0) return codes + ranges;
  double const outliers = elements * outlier_fraction * (sizeof(half) + sizeof(std::uint16_t));
  return codes + ranges + outliers + 2 * rows * sizeof(std::uint32_t);
}

}  // namespace kvquant::plan
