#pragma once
/// \file
/// Random keys and values, and artifacts for them without a calibration: time does not depend on how well levels fit.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/format/uniform.hpp"
#include "kvquant/quantize/outlier.hpp"

namespace kvquant::measure {

/// Tokens of normally distributed channels, each with a spread of its own, keys with a centre too.
struct random_tokens {
  std::size_t tokens, channels;
  std::vector<float> k, v;  ///< [tokens, channels]

  random_tokens(std::size_t count, std::size_t width, std::uint64_t seed = 1)
      : tokens(count), channels(width), k(fill(2, seed)), v(fill(0, seed + 1)) {}

  view2d<float const> keys() const { return {k.data(), tokens, channels}; }
  view2d<float const> values() const { return {v.data(), tokens, channels}; }

 private:
  std::vector<float> fill(float centre_deviation, std::uint64_t seed) const {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> centre(channels), spread(channels), x(tokens * channels);
    for (float& it : centre) it = centre_deviation * normal(random);
    for (float& it : spread) it = std::exp(normal(random) / 4);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = centre[i % channels] + spread[i % channels] * normal(random);
    return x;
  }
};

inline std::vector<half> to_halves(std::vector<float> const& x) {
  std::vector<half> halves(x.size());
  std::transform(x.begin(), x.end(), halves.begin(), to_half);
  return halves;
}

/// The range of each channel that leaves `fraction` of the tokens outside.
inline std::vector<value_range> ranges_of(view2d<float const> keys, double fraction) {
  std::size_t const outside = outliers_per_side(fraction, keys.rows);
  std::vector<value_range> ranges;
  std::vector<float> column(keys.rows);
  for (std::size_t channel = 0; channel < keys.cols; ++channel) {
    for (std::size_t token = 0; token < keys.rows; ++token) column[token] = keys(token, channel);
    std::sort(column.begin(), column.end());
    ranges.push_back(make_range(column[outside], column[column.size() - 1 - outside]));
  }
  return ranges;
}

/// Evenly spaced levels for a fitted format.
template <Format F>
codebook even_codebook() {
  codebook book;
  if constexpr (F::fitted) {
    auto const even = uniform<F::bits>::default_table();
    book.levels.assign(even.level, even.level + even.levels);
    book.decode_levels = book.levels;
  }
  return book;
}

/// The same tables for every layer, ranges from `keys` [tokens, kv_channels], one sink.
template <Spec S>
artifact<S> make_artifact(model_shape const& shape, view2d<float const> keys, double outlier_fraction) {
  artifact<S> it;
  it.info.spec = S::name();
  it.info.shape = shape;
  it.info.outlier_fraction_k = it.info.outlier_fraction_v = outlier_fraction;
  it.info.sinks = 1;
  layer_artifact const layer{.key_ranges = ranges_of(keys, outlier_fraction),
                             .key = even_codebook<typename S::key_format>(),
                             .value = even_codebook<typename S::value_format>(),
                             .key_sensitivity = std::vector<float>(keys.cols, 1.0f),
                             .value_sensitivity = std::vector<float>(keys.cols, 1.0f)};
  it.layers.assign(static_cast<std::size_t>(shape.layers), layer);
  return it;
}

}  // namespace kvquant::measure
