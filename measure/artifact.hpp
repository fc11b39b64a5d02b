#pragma once
/// \file
/// Random keys and values, and artifacts for them without a calibration: time does not depend on how well levels fit.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kvquant/calibrate/allocate.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/budget.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/format/uniform.hpp"
#include "kvquant/quantize/outlier.hpp"
#include "measure/job.hpp"

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

/// The range of each channel that leaves `fraction` of the tokens outside. `x`: [tokens, kv_channels].
inline std::vector<value_range> ranges_of(view2d<float const> x, double fraction) {
  std::size_t const outside = outliers_per_side(fraction, x.rows);
  std::vector<value_range> ranges;
  std::vector<float> column(x.rows);
  for (std::size_t channel = 0; channel < x.cols; ++channel) {
    for (std::size_t token = 0; token < x.rows; ++token) column[token] = x(token, channel);
    std::sort(column.begin(), column.end());
    ranges.push_back(make_range(column[outside], column[column.size() - 1 - outside]));
  }
  return ranges;
}

/// Evenly spaced over [−1, 1].
template <int Bits>
std::vector<float> even_levels() {
  auto const even = uniform<Bits>::default_table();
  return {even.level, even.level + even.levels};
}

/// Evenly spaced levels for a fitted format.
template <Format F>
codebook even_codebook() {
  codebook book;
  if constexpr (F::fitted && !is_by_channel<F>) book.levels = book.decode_levels = even_levels<F::bits>();
  return book;
}

/// Widths for channels that weigh differently: by `deviation` of the logarithm of what a unit's error costs. On
/// SmolLM2-135M 1.2 for the pairs of keys and 0.7 for values give widths as different as those of a calibration.
inline channel_codes uneven_channels(width_plan const& plan, int token_bits, std::vector<value_range> ranges,
                                     double deviation) {
  channel_codes out{std::vector<std::uint8_t>(ranges.size()), ranges, ranges, {}, {}};
  std::mt19937_64 random(11);
  std::normal_distribution<double> normal;
  for (std::size_t first = 0; first < plan.units.size(); first += plan.units_per_head) {
    std::vector<width_losses> losses(plan.units_per_head);
    for (width_losses& it : losses) {
      double const weight = std::exp(deviation * normal(random));
      for (std::size_t i = 0; i < it.size(); ++i) it[i] = weight * std::exp2(-2 * static_cast<double>(i));
    }
    auto const bits =
        allocate_widths(losses, plan.quantum, static_cast<std::size_t>(token_bits) / plan.units[first].size());
    for (std::size_t unit = 0; unit < bits.size(); ++unit)
      for (std::size_t const channel : plan.units[first + unit]) out.widths[channel] = bits[unit];
  }
  out.levels = {even_levels<1>(), even_levels<2>(), even_levels<3>(), even_levels<4>()};
  for (std::uint8_t const width : out.widths) out.table_of.push_back(static_cast<std::uint16_t>(width - 1));
  return out;
}

/// What an artifact for the format says of the model; one sink.
template <Spec S>
artifact_info info_of(model_shape const& shape, format_choice const& format) {
  artifact_info info{.spec = S::name(), .shape = shape, .sinks = 1, .origin = {}, .hash = {}};
  info.outlier_fraction_k = info.outlier_fraction_v = format.outlier_fraction;
  if constexpr (is_by_channel<typename S::key_format>) {
    auto const budget = budget_of<S>({format.bits, format.outlier_fraction}, shape.head_dim);
    info.key_token_bits = info.value_token_bits = budget.token_bits;
    info.outlier_fraction_k = info.outlier_fraction_v = budget.outlier_fraction;
  }
  return info;
}

/// The same tables for every layer, ranges from `tokens`.
template <Spec S>
artifact<S> make_artifact(model_shape const& shape, random_tokens const& tokens, format_choice const& format) {
  artifact<S> it{info_of<S>(shape, format), {}};
  layer_artifact layer{.key_ranges = ranges_of(tokens.keys(), format.outlier_fraction),
                       .key = even_codebook<typename S::key_format>(),
                       .value = even_codebook<typename S::value_format>(),
                       .key_sensitivity = std::vector<float>(tokens.channels, 1.0f),
                       .value_sensitivity = std::vector<float>(tokens.channels, 1.0f)};
  if constexpr (is_by_channel<typename S::key_format>) {
    layer.key_channels = uneven_channels(plan_of(shape, true), it.info.key_token_bits, layer.key_ranges, 1.2);
    layer.value_channels = uneven_channels(plan_of(shape, false), it.info.value_token_bits,
                                           ranges_of(tokens.values(), format.outlier_fraction), 0.7);
  }
  it.layers.assign(static_cast<std::size_t>(shape.layers), layer);
  return it;
}

}  // namespace kvquant::measure
