#pragma once
/// \file
/// Artifacts without a calibration: ranges from keys at hand, levels at the quantiles of the normal distribution.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "test/support/random_matrix.hpp"

namespace kvquant::test {

struct hand_made_options {
  model_shape shape{};
  double outliers_k = 0.01, outliers_v = 0.01;
  int sinks = 1;
  bool q_norm = false;  ///< fitted formats decode to other levels than they compare with
};

/// Each channel's mean, give or take 2.5 deviations if what lies beyond can be kept sparse, 3.5 otherwise.
inline std::vector<value_range> ranges_around_mean(view2d<float const> keys, bool sparse) {
  std::vector<value_range> ranges;
  for (std::size_t channel = 0; channel < keys.cols; ++channel) {
    moments all;
    for (std::size_t token = 0; token < keys.rows; ++token) all.add(keys(token, channel), 1);
    double const reach = (sparse ? 2.5 : 3.5) * all.deviation();
    ranges.push_back(make_range(static_cast<float>(all.mean() - reach), static_cast<float>(all.mean() + reach)));
  }
  return ranges;
}

template <Format F>
codebook normal_codebook(bool q_norm) {
  codebook book;
  if constexpr (F::fitted) {
    book.norm = q_norm ? kvquant::q_norm{1.05, 0.01} : kvquant::q_norm{};
    for (float const level : normal_float<F::bits>::default_table().level) {
      book.levels.push_back(level);
      book.decode_levels.push_back(static_cast<float>(book.norm.apply(level)));
    }
  }
  return book;
}

/// `keys`: what the ranges are taken from, a matrix [tokens, kv_channels] for each layer.
template <Spec S>
artifact<S> hand_made_artifact(hand_made_options const& options, std::vector<float_matrix> const& keys) {
  artifact<S> it;
  it.info.spec = S::name();
  it.info.shape = options.shape;
  it.info.outlier_fraction_k = options.outliers_k;
  it.info.outlier_fraction_v = options.outliers_v;
  it.info.sinks = options.sinks;
  it.info.q_norm = options.q_norm;
  for (std::size_t layer = 0; layer < keys.size(); ++layer) {
    auto const sensitivity = [&](std::uint64_t side) { return random_weights(1, keys[layer].cols, 2 * layer + side).values; };
    it.layers.push_back({.key_ranges = ranges_around_mean(keys[layer], options.outliers_k > 0),
                         .key = normal_codebook<typename S::key_format>(options.q_norm),
                         .value = normal_codebook<typename S::value_format>(options.q_norm),
                         .key_sensitivity = sensitivity(0),
                         .value_sensitivity = sensitivity(1)});
  }
  return it;
}

}  // namespace kvquant::test
