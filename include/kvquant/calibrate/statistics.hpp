#pragma once
/// \file
/// What calibration learns from a model's keys, values and their gradients, before any codebook is fitted.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kvquant/calibrate/histogram.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/quantize/affine.hpp"
#include "kvquant/quantize/outlier.hpp"
#include "kvquant/quantize/spec.hpp"

namespace kvquant {

/// By what a normalised value x' = (x − z) / s counts in the fit of its codebook. F is the squared gradient of the
/// loss.
enum class fit_weights {
  fisher,           ///< F · s²: the first-order loss (KVQuant, equation 3)
  fisher_unscaled,  ///< F, as the paper's published code has it
  activation,       ///< s²: plain squared error of x
  none,             ///< 1: squared error of x'
};
/// In the order of the enumeration.
inline constexpr std::array all_fit_weights = {fit_weights::fisher, fit_weights::fisher_unscaled,
                                               fit_weights::activation, fit_weights::none};

/// As files and command lines spell it.
constexpr std::string_view to_string(fit_weights weights) noexcept {
  constexpr std::array<std::string_view, 4> names = {"fisher", "fisher-unscaled", "activation", "none"};
  return names[static_cast<std::size_t>(weights)];
}
/// Whether they need gradients.
constexpr bool uses_fisher(fit_weights weights) noexcept {
  return weights == fit_weights::fisher || weights == fit_weights::fisher_unscaled;
}

/// How the statistics are gathered. Those of equal options (and, once frozen, of equal key ranges) can be merged.
struct calibration_options {
  int layers = 0;                    ///< of the model
  int kv_channels = 0;               ///< kv_heads · head_dim
  double outlier_fraction_k = 0.01;  ///< of a channel's values, half at each end; 0: ranges from minimum to maximum
  double outlier_fraction_v = 0.01;  ///< of a token's values, half at each end
  int sinks = 1;                     ///< the first tokens of a window are kept exact, so they are not learned from
  std::size_t max_tokens = 0;        ///< upper bound on the tokens observed, of all that will be merged
  std::size_t bins = histogram::default_bins;  ///< of the histograms of a layer's sides
  std::size_t channel_bins = 0;  ///< of each channel's own histogram, for formats that are `by_channel`; 0: none

  friend bool operator==(calibration_options const&, calibration_options const&) = default;
};

/// Throws `bad_shape` or `bad_value` naming the option that cannot be.
inline void validate(calibration_options const& options) {
  require(options.layers >= 1 && options.layers <= (1 << 16), errc::bad_shape, "calibration: ", options.layers,
          " layers, expected 1 to 65536");
  require(options.kv_channels >= 1 && options.kv_channels <= (1 << 16), errc::bad_shape,
          "calibration: ", options.kv_channels, " channels, expected 1 to 65536");
  require(options.sinks >= 0, errc::bad_value, "calibration: ", options.sinks, " sinks, expected 0 or more");
  require(options.bins >= 1 && options.bins <= histogram::most_bins, errc::bad_value, "calibration: ", options.bins,
          " bins, expected 1 to ", histogram::most_bins);
  require(options.channel_bins <= histogram::default_bins, errc::bad_value, "calibration: ", options.channel_bins,
          " bins of a channel, expected at most ", histogram::default_bins);
  require(options.max_tokens >= 1, errc::bad_value, "calibration: max_tokens is 0, expected the tokens to be observed");
  for (double const fraction : {options.outlier_fraction_k, options.outlier_fraction_v})
    outliers_per_side(fraction, static_cast<std::size_t>(options.kv_channels));
}

/// The values of one channel, outliers included.
struct channel_statistics {
  value_range range{};  ///< from the least to the greatest
  histogram values;     ///< of x' in that range, by F where gradients were observed, else by 1
};

/// One side (keys or values) of one layer.
struct side_statistics {
  std::array<histogram, all_fit_weights.size()> histograms;  ///< by fit_weights
  std::vector<double> sensitivity;                           ///< [channels] Σ over tokens of F
  std::uint64_t values = 0;                                  ///< observed, sinks aside
  std::uint64_t outliers = 0;                                ///< of these, beyond their range
  std::vector<channel_statistics> channels;                  ///< [channels], or none

  /// Nothing observed yet. `channel_bins` 0: no histograms of channels.
  side_statistics(std::size_t channel_count, std::size_t bins, std::size_t channel_bins = 0)
      : histograms{histogram(bins), histogram(bins), histogram(bins), histogram(bins)},
        sensitivity(channel_count),
        channels(channel_bins > 0 ? channel_count : 0,
                 channel_statistics{{}, histogram(std::max<std::size_t>(channel_bins, 1))}) {}

  ///@{
  /// The histogram by these weights.
  histogram const& of(fit_weights weights) const { return histograms[static_cast<std::size_t>(weights)]; }
  histogram& of(fit_weights weights) { return histograms[static_cast<std::size_t>(weights)]; }
  ///@}
  /// Of the values observed; 0 where there are none.
  double outlier_rate() const {
    return values == 0 ? 0.0 : static_cast<double>(outliers) / static_cast<double>(values);
  }

  /// In place of F where no gradient was observed.
  static constexpr double unknown_weight = -1;

  /// Counts a value that is no outlier, by all weights at once.
  void add(affine map, float x, double fisher) noexcept {
    float const normal = std::clamp(map.normalise(x), -1.0f, 1.0f);
    double const scale_squared = static_cast<double>(map.scale) * map.scale;
    std::size_t const bin = of(fit_weights::none).bin_of(normal);
    of(fit_weights::none).add_to(bin, normal, 1);
    of(fit_weights::activation).add_to(bin, normal, scale_squared);
    if (fisher < 0) return;
    of(fit_weights::fisher_unscaled).add_to(bin, normal, fisher);
    of(fit_weights::fisher).add_to(bin, normal, fisher * scale_squared);
  }

  /// Counts a value in its channel's own histogram, where there are some.
  void add_to_channel(std::size_t channel, float x, double fisher) noexcept {
    if (channels.empty()) return;
    channel_statistics& it = channels[channel];
    it.values.add(std::clamp(affine_of(it.range).normalise(x), -1.0f, 1.0f), fisher < 0 ? 1 : fisher);
  }

  /// Of equal options and ranges.
  side_statistics& operator+=(side_statistics const& other) {
    for (std::size_t i = 0; i < histograms.size(); ++i) histograms[i] += other.histograms[i];
    for (std::size_t c = 0; c < sensitivity.size(); ++c) sensitivity[c] += other.sensitivity[c];
    values += other.values;
    outliers += other.outliers;
    for (std::size_t c = 0; c < channels.size(); ++c) channels[c].values += other.channels[c].values;
    return *this;
  }
};

/// Both sides of one layer.
struct layer_statistics {
  std::vector<value_range> key_ranges;  ///< [channels]
  side_statistics key, value;           ///< of either side
};

}  // namespace kvquant
