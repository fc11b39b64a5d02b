#pragma once
/// \file
/// From statistics to an artifact: one codebook for each side of each layer.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/budget.hpp"
#include "kvquant/calibrate/calibrator.hpp"
#include "kvquant/calibrate/channel_fit.hpp"
#include "kvquant/calibrate/channel_widths.hpp"
#include "kvquant/calibrate/kmeans.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/format/int8_grid.hpp"

namespace kvquant {

/// How an artifact is made of statistics.
struct fit_options {
  model_shape shape = {};                     ///< of the model; layers and channels must be those of the statistics
  key_space keys = key_space::pre_rope;       ///< where the observed keys were taken
  fit_weights weights = fit_weights::fisher;  ///< by what a value counts in the fit
  bool q_norm = false;                        ///< decode levels restore mean and deviation (KVQuant, section 3.5)
  bool int8_levels = true;                    ///< round what codes of up to 4 bits read as to an `int8_grid`
  /// Of formats that are `by_channel`. They keep no values beyond ranges; their outliers are those of pages.
  struct channel_choice {
    channel_budget budget{};                         ///< bits of a token's codes
    channel_levels levels = channel_levels::shared;  ///< one table for eight channels, or one for each
    /// What a loss of values counts beside an equal one of keys where bits are divided between them. Measured: see
    /// docs/design.md.
    double value_weight = 1.3;
  } by_channel = {};       ///< used by such formats alone
  provenance origin = {};  ///< written into the artifact
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

template <Spec S>
inline constexpr bool has_one_codebook = (S::key_format::fitted && !is_by_channel<typename S::key_format>) ||
                                         (S::value_format::fitted && !is_by_channel<typename S::value_format>);

/// [layers] of both sides, empty where the format is not `by_channel`.
struct model_losses {
  side_losses keys{}, values{};
};
template <Spec S>
model_losses losses_of(std::span<layer_statistics const> layers) {
  auto const of_side = [&]<Format F>(std::type_identity<F>, side_statistics layer_statistics::*side) {
    side_losses losses(layers.size());
    if constexpr (is_by_channel<F>)
      std::transform(layers.begin(), layers.end(), losses.begin(),
                     [&](layer_statistics const& layer) { return channel_losses(layer.*side); });
    return losses;
  };
  return {of_side(std::type_identity<typename S::key_format>{}, &layer_statistics::key),
          of_side(std::type_identity<typename S::value_format>{}, &layer_statistics::value)};
}

/// Divides the bits of pages between codes and slots, and where both sides are `by_channel` between keys and values.
template <Spec S>
void take_budget(fit_options const& options, model_losses const& losses, artifact_info& info) {
  constexpr bool keys = is_by_channel<typename S::key_format>, values = is_by_channel<typename S::value_format>;
  if constexpr (keys || values) {
    page_budget const budget = budget_of<S>(options.by_channel.budget, options.shape.head_dim);
    side_bits bits{keys ? budget.token_bits : 0, values ? budget.token_bits : 0};
    if (keys && values)
      bits = bit_division(losses.keys, losses.values, options.shape, options.by_channel.value_weight)
                 .from(budget.token_bits);
    info.key_token_bits = bits.key;
    info.value_token_bits = bits.value;
    if (keys) info.outlier_fraction_k = budget.outlier_fraction;
    if (values) info.outlier_fraction_v = budget.outlier_fraction;
  }
}

/// The codes of one side of a layer, and how well they fit: the loss, and that of channels which read as their mean.
inline channel_codes fit_channels(side_statistics const& side, std::span<width_losses const> losses,
                                  fit_options const& options, bool is_key, int token_bits, codebook& report) {
  channel_fitter const fitter(side, options.by_channel.levels, is_key ? key_grid_limit : value_grid_limit,
                              options.int8_levels);
  width_plan const plan = plan_of(options.shape, is_key);
  channel_codes codes = fitter.fit(plan, choose_widths(losses, plan, token_bits).widths);
  report.objective = fitter.error(codes);
  report.mass = fitter.spread();
  return codes;
}

template <Format F>
void fit_side(side_statistics const& side, std::span<width_losses const> losses, fit_options const& options,
              bool is_key, int token_bits, codebook& book, channel_codes& channels) {
  if constexpr (is_by_channel<F>)
    channels = fit_channels(side, losses, options, is_key, token_bits, book);
  else
    book = fit_codebook<F>(side, options, is_key ? key_grid_limit : value_grid_limit);
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
  auto const by_channel = [&](bool wanted, side_statistics const& side, char const* what) {
    if (!wanted) return;
    require(!side.channels.empty(), errc::bad_value, "fit: ", S::name(), " needs the ", what,
            " of each channel, the statistics have none (channel_bins)");
    require(uses_fisher(weights) == (side.of(fit_weights::fisher).total().mass > 0), errc::bad_value, "fit: layer ",
            index, ": the ", what, " of each channel were observed ", uses_fisher(weights) ? "without" : "with",
            " gradients, not as ", to_string(weights), " weights need them");
  };
  by_channel(is_by_channel<typename S::key_format>, layer.key, "keys");
  by_channel(is_by_channel<typename S::value_format>, layer.value, "values");
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
  result.info = {.spec = S::name(),
                 .shape = options.shape,
                 .outlier_fraction_k = key_format::scaled ? observed.outlier_fraction_k : 0,  // of what has a range
                 .outlier_fraction_v = value_format::scaled ? observed.outlier_fraction_v : 0,
                 .sinks = observed.sinks,
                 .keys = options.keys,
                 .weights = options.weights,
                 .q_norm = options.q_norm && detail::has_one_codebook<S>,
                 .origin = options.origin,
                 .hash = {}};
  std::span<layer_statistics const> const layers = statistics.layers();
  for (std::size_t i = 0; i < layers.size(); ++i) detail::require_statistics<S>(layers[i], i, options.weights);
  detail::model_losses const losses = detail::losses_of<S>(layers);
  detail::take_budget<S>(options, losses, result.info);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layer_statistics const& layer = layers[i];
    result.layers.push_back({.key_ranges = layer.key_ranges,
                             .key = {},
                             .value = {},
                             .key_sensitivity = detail::to_floats(layer.key.sensitivity),
                             .value_sensitivity = detail::to_floats(layer.value.sensitivity)});
    layer_artifact& to = result.layers.back();
    detail::fit_side<key_format>(layer.key, losses.keys[i], options, true, result.info.key_token_bits, to.key,
                                 to.key_channels);
    detail::fit_side<value_format>(layer.value, losses.values[i], options, false, result.info.value_token_bits,
                                   to.value, to.value_channels);
    auto const head_dim = static_cast<std::size_t>(options.shape.head_dim);
    result.info.own_levels |= has_own_levels(to.key_channels, head_dim) || has_own_levels(to.value_channels, head_dim);
  }
  return result;
}

}  // namespace kvquant
