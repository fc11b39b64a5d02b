#pragma once
/// \file
/// From statistics to an artifact: one codebook for each side of each layer.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/calibrator.hpp"
#include "kvquant/calibrate/kmeans.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/format/int8_grid.hpp"

namespace kvquant {

struct fit_options {
  model_shape shape = {};
  key_space keys = key_space::pre_rope;  ///< where the observed keys were taken
  fit_weights weights = fit_weights::fisher;
  bool q_norm = false;
  bool int8_levels = true;  ///< round what codes of up to 4 bits read as to an `int8_grid`
  provenance origin = {};
};

/// The distribution of a histogram's values after rounding with `table`: which level each bin reads as, by the bin's
/// mean.
template <Format F, class Visit>
void for_each_rounded_bin(histogram const& values, typename F::table const& table, Visit&& visit) {
  for (moments const& bin : values.bins())
    if (bin.mass > 0) {
      auto const code = F::encode(table, static_cast<float>(bin.mean()));
      visit(bin, static_cast<double>(F::decode(table, code)));
    }
}

/// Σ w (x' − x̂')².
template <Format F>
double weighted_error(histogram const& values, typename F::table const& table) {
  double sum = 0;
  for_each_rounded_bin<F>(values, table, [&](moments const& bin, double level) { sum += bin.squared_error(level); });
  return sum;
}

namespace detail {

inline std::vector<float> to_floats(std::vector<double> const& values) { return {values.begin(), values.end()}; }

/// Evenly spaced over [−1, 1]: any codebook is as good as another where no value has weight.
inline std::vector<double> even_levels(std::size_t count) {
  std::vector<double> levels(count);
  for (std::size_t i = 0; i < count; ++i)
    levels[i] = count == 1 ? 0 : -1 + 2 * static_cast<double>(i) / static_cast<double>(count - 1);
  return levels;
}

template <Format F>
q_norm q_norm_of(histogram const& values, typename F::table const& table) {
  moments before, after;
  for_each_rounded_bin<F>(values, table, [&](moments const& bin, double level) {
    before += bin;
    after.add(level, bin.mass);
  });
  return fit_q_norm(before, after);
}

template <Format F>
codebook fit_codebook(side_statistics const& side, fit_options const& options, int grid_limit) {
  histogram const& values = side.of(options.weights);
  codebook book;
  book.mass = values.total().mass;
  book.outlier_rate = side.outlier_rate();
  if constexpr (F::fitted) {
    constexpr std::size_t count = std::size_t{1} << F::bits;
    auto const centroids = book.mass > 0 ? exact_kmeans(values.bins(), count).centroids : even_levels(count);
    book.levels = book.decode_levels = to_floats(centroids);
    if (options.q_norm) {
      book.norm = q_norm_of<F>(values, table_of<F>(book));
      for (float& level : book.decode_levels) level = static_cast<float>(book.norm.apply(level));
    }
    if (options.int8_levels && F::bits <= 4) snap_to_int8_grid(book.decode_levels, grid_limit);
    if (!options.q_norm) book.levels = book.decode_levels;
  }
  book.objective = weighted_error<F>(values, table_of<F>(book));
  return book;
}

/// A side may have weights that are all zero (a gradient that vanishes), so it is enough that one fitted side has some.
template <Spec S>
void require_statistics(layer_statistics const& layer, std::size_t index, fit_weights weights) {
  constexpr bool key = S::key_format::fitted, value = S::value_format::fitted;
  require(!key || layer.key.values > 0, errc::bad_value, "fit: ", S::name(), " needs observed keys, layer ", index,
          " has none");
  require(!value || layer.value.values > 0, errc::bad_value, "fit: ", S::name(), " needs observed values, layer ",
          index, " has none");
  bool const has_weights = (key && layer.key.of(weights).total().mass > 0) ||  //
                           (value && layer.value.of(weights).total().mass > 0);
  require(has_weights || !uses_fisher(weights) || !(key || value), errc::bad_value, "fit: layer ", index,
          " was observed without ", to_string(weights), " weights");
}

}  // namespace detail

/// Fits the codebooks of spec `S`. Throws `bad_value` where a fitted format lacks the statistics that `weights` asks
/// for. Fixed formats (normal_float, uniform) need no more than frozen key ranges.
template <Spec S>
artifact<S> fit(calibrator const& statistics, fit_options const& options) {
  using key_format = typename S::key_format;
  using value_format = typename S::value_format;
  validate(options.shape);
  calibration_options const& observed = statistics.options();
  require(options.shape.layers == observed.layers && options.shape.kv_channels() == observed.kv_channels,
          errc::bad_shape, "fit: a model of ", options.shape.layers, " layers x ", options.shape.kv_channels(),
          " channels, statistics of ", observed.layers, " x ", observed.kv_channels);
  require(statistics.ranges_frozen(), errc::bad_value, "fit: the key ranges are not frozen");

  artifact<S> result;
  result.info = {S::name(),
                 options.shape,
                 key_format::scaled ? observed.outlier_fraction_k : 0,  // what has no range has nothing outside it
                 value_format::scaled ? observed.outlier_fraction_v : 0,
                 observed.sinks,
                 options.keys,
                 options.weights,
                 options.q_norm && (key_format::fitted || value_format::fitted),
                 options.origin,
                 {}};
  for (layer_statistics const& layer : statistics.layers()) {
    detail::require_statistics<S>(layer, result.layers.size(), options.weights);
    result.layers.push_back({layer.key_ranges, detail::fit_codebook<key_format>(layer.key, options, key_grid_limit),
                             detail::fit_codebook<value_format>(layer.value, options, value_grid_limit),
                             detail::to_floats(layer.key.sensitivity), detail::to_floats(layer.value.sensitivity)});
  }
  return result;
}

}  // namespace kvquant
