#pragma once
/// \file
/// Two passes over a model's keys and values: the ranges of the key channels first, then weighted histograms within
/// them.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kvquant/calibrate/statistics.hpp"
#include "kvquant/calibrate/tail_sketch.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/quantize/token_side.hpp"

namespace kvquant {

/// Gathers calibration statistics for all layers. Every view is [tokens, kv_channels] of one window, from its first
/// token on. Calls for different layers may run on different threads. The result depends on the order of windows within
/// a layer only by the rounding of sums.
class calibrator {
 public:
  /// Throws `bad_shape` or `bad_value` for options that cannot be.
  explicit calibrator(calibration_options const& options) : options_(options) {
    validate(options_);
    auto const channels = static_cast<std::size_t>(options_.kv_channels);
    std::size_t const capacity = tail_sketch::capacity_for(options_.outlier_fraction_k, options_.max_tokens);
    side_statistics const side(channels, options_.bins, options_.channel_bins);
    layers_.assign(static_cast<std::size_t>(options_.layers), {{}, side, side});
    tails_.assign(layers_.size(), std::vector(channels, tail_sketch(capacity)));
    if (options_.channel_bins > 0) value_ends_.assign(layers_.size(), std::vector(channels, tail_sketch(2)));
  }

  /// Statistics that were gathered before (read from a file), for merging or fitting.
  calibrator(calibration_options const& options, std::vector<layer_statistics> layers)
      : options_(options), layers_(std::move(layers)), frozen_(true) {
    validate(options_);
    require(layers_.size() == static_cast<std::size_t>(options_.layers), errc::bad_shape, "calibration: statistics of ",
            layers_.size(), " layers, expected ", options_.layers);
  }

  /// What it was made with.
  calibration_options const& options() const { return options_; }
  /// What was gathered, [layers].
  std::vector<layer_statistics> const& layers() const { return layers_; }
  /// Whether the first pass is over.
  bool ranges_frozen() const { return frozen_; }

  /// First pass. Throws `bad_value` naming layer, channel and token for what is not finite.
  void observe_range(int layer, view2d<float const> k) { observe_ends(layer, k, "keys", tails_); }
  /// The same of values, where each channel has its own histogram.
  void observe_value_range(int layer, view2d<float const> v) {
    require(options_.channel_bins > 0, errc::bad_value, "calibration: ranges of values without bins of a channel");
    observe_ends(layer, v, "values", value_ends_);
  }

  /// Ends the first pass: each key channel's range runs between its f/2 and 1 − f/2 quantiles, as binary16.
  void freeze_ranges() {
    require(!frozen_, errc::bad_value, "calibration: the key ranges are frozen already");
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      for (tail_sketch& tail : tails_[layer]) {
        auto const [lower, upper] = tail.quantiles(options_.outlier_fraction_k / 2);
        layers_[layer].key_ranges.push_back(make_range(lower, upper));
      }
    freeze_channels(tails_, &layer_statistics::key);
    freeze_channels(value_ends_, &layer_statistics::value);
    end_first_pass();
  }

  /// Takes the frozen ranges of `other` instead of a first pass, so that what both observe can be merged.
  void use_ranges_of(calibrator const& other) {
    require(!frozen_ && other.frozen_ && other.layers_.size() == layers_.size() &&
                other.options_.kv_channels == options_.kv_channels &&
                other.options_.channel_bins == options_.channel_bins,
            errc::bad_shape, "calibration: ranges of ", other.layers_.size(), " layers x ", other.options_.kv_channels,
            " channels with ", other.options_.channel_bins, " bins, expected frozen ones of ", layers_.size(), " x ",
            options_.kv_channels, " with ", options_.channel_bins);
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      layers_[layer].key_ranges = other.layers_[layer].key_ranges;
      for (auto const side : {&layer_statistics::key, &layer_statistics::value})
        for (std::size_t c = 0; c < (layers_[layer].*side).channels.size(); ++c)
          (layers_[layer].*side).channels[c].range = (other.layers_[layer].*side).channels[c].range;
    }
    end_first_pass();
  }

  /// Second pass. `k_fisher` and `v_fisher`: squared gradients of the loss, or empty.
  void observe(int layer, view2d<float const> k, view2d<float const> v, view2d<float const> k_fisher = {},
               view2d<float const> v_fisher = {}) {
    require(k.rows == v.rows, errc::bad_shape, "calibration: layer ", layer, " has keys of ", k.rows,
            " tokens and values of ", v.rows);
    observe_keys(layer, k, k_fisher);
    observe_values(layer, v, v_fisher);
  }

  /// One side of `observe`.
  void observe_keys(int layer, view2d<float const> k, view2d<float const> fisher = {}) {
    check_observation(layer, k, fisher, "keys");
    auto& statistics = layers_[static_cast<std::size_t>(layer)];
    bool const has_outliers = options_.outlier_fraction_k > 0;
    for (std::size_t channel = 0; channel < k.cols; ++channel) {
      value_range const range = statistics.key_ranges[channel];
      float const low = range.low(), high = range.high();
      affine const map = affine_of(range);
      for (std::size_t token = first_learned(); token < k.rows; ++token) {
        float const x = k(token, channel);
        bool const outside = has_outliers && (x < low || x > high);
        // A channel of one value is exact with any codebook.
        observe_one(statistics.key, channel, map, x, weight_at(fisher, token, channel), outside, low < high);
      }
    }
  }

  /// One side of `observe`.
  void observe_values(int layer, view2d<float const> v, view2d<float const> fisher = {}) {
    check_observation(layer, v, fisher, "values");
    side_statistics& side = layers_[static_cast<std::size_t>(layer)].value;
    rank_selector selector(v.cols, options_.outlier_fraction_v);
    std::vector<std::uint8_t> set_aside(v.cols);
    for (std::size_t token = first_learned(); token < v.rows; ++token) {
      value_range const range = selector.select(v.row(token));
      affine const map = affine_of(range);
      std::fill(set_aside.begin(), set_aside.end(), std::uint8_t{0});
      for (auto const channels : {selector.smallest(), selector.largest()})
        for (std::uint16_t const channel : channels) set_aside[channel] = 1;
      for (std::size_t channel = 0; channel < v.cols; ++channel)
        observe_one(side, channel, map, v(token, channel), weight_at(fisher, token, channel), set_aside[channel] != 0,
                    range.low() < range.high());
    }
  }

  /// Adds what `other` has seen. Throws `bad_shape` unless options (and ranges, once frozen) are the same.
  void merge(calibrator const& other) {
    require(options_ == other.options_ && frozen_ == other.frozen_, errc::bad_shape,
            "calibration: statistics of other options cannot be merged");
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      if (!frozen_) {
        for (std::size_t c = 0; c < tails_[layer].size(); ++c) tails_[layer][c].merge(other.tails_[layer][c]);
        for (std::size_t c = 0; !value_ends_.empty() && c < value_ends_[layer].size(); ++c)
          value_ends_[layer][c].merge(other.value_ends_[layer][c]);
        continue;
      }
      require(same_ranges(layer, other), errc::bad_shape, "calibration: layer ", layer,
              " was observed within other key ranges; use the ranges of one for both");
      layers_[layer].key += other.layers_[layer].key;
      layers_[layer].value += other.layers_[layer].value;
    }
  }

 private:
  using sketches = std::vector<std::vector<tail_sketch>>;  // [layers][channels]

  void observe_ends(int layer, view2d<float const> x, char const* side, sketches& ends) {
    require(!frozen_, errc::bad_value, "calibration: the key ranges are frozen, no more can be observed");
    check(layer, x, side);
    auto& of_layer = ends[static_cast<std::size_t>(layer)];
    for (std::size_t token = first_learned(); token < x.rows; ++token)
      for (std::size_t channel = 0; channel < x.cols; ++channel) of_layer[channel].add(x(token, channel));
  }
  void freeze_channels(sketches& ends, side_statistics layer_statistics::*side) {
    for (std::size_t layer = 0; layer < layers_.size(); ++layer)
      for (std::size_t c = 0; c < (layers_[layer].*side).channels.size(); ++c) {
        auto const [least, greatest] = ends[layer][c].quantiles(0);
        (layers_[layer].*side).channels[c].range = make_range(least, greatest);
      }
  }
  void end_first_pass() {
    tails_.clear();
    value_ends_.clear();
    frozen_ = true;
  }

  std::size_t first_learned() const { return static_cast<std::size_t>(options_.sinks); }

  void check(int layer, view2d<float const> x, char const* side) const {
    require(layer >= 0 && layer < options_.layers, errc::bad_shape, "calibration: layer ", layer, ", expected 0 to ",
            options_.layers - 1);
    require(x.cols == static_cast<std::size_t>(options_.kv_channels), errc::bad_shape, "calibration: layer ", layer,
            ", ", side, " of ", x.cols, " channels, expected ", options_.kv_channels);
    for (std::size_t token = 0; token < x.rows; ++token)
      for (std::size_t channel = 0; channel < x.cols; ++channel)
        if (!std::isfinite(x(token, channel))) [[unlikely]]
          throw error{errc::bad_value, text("calibration: layer ", layer, ", ", side, ", channel ", channel, ", token ",
                                            token, " is ", x(token, channel), ", expected a finite value")};
  }

  void check_observation(int layer, view2d<float const> x, view2d<float const> weights, char const* side) const {
    require(frozen_, errc::bad_value, "calibration: ", side, " were observed before freeze_ranges()");
    check(layer, x, side);
    if (weights.empty()) return;
    check(layer, weights, "weights");
    require(weights.rows == x.rows, errc::bad_shape, "calibration: layer ", layer, ", weights of ", weights.rows,
            " tokens for ", side, " of ", x.rows);
    for (std::size_t token = 0; token < weights.rows; ++token)
      for (float const weight : weights.row(token))
        require(weight >= 0, errc::bad_value, "calibration: layer ", layer, ", a weight of ", side, " at token ", token,
                " is negative");
  }

  static double weight_at(view2d<float const> fisher, std::size_t token, std::size_t channel) {
    return fisher.empty() ? side_statistics::unknown_weight : static_cast<double>(fisher(token, channel));
  }

  static void observe_one(side_statistics& side, std::size_t channel, affine map, float x, double fisher,
                          bool is_outlier, bool has_range) {
    ++side.values;
    if (is_outlier) ++side.outliers;
    if (fisher > 0) side.sensitivity[channel] += fisher;
    side.add_to_channel(channel, x, fisher);
    if (!is_outlier && has_range) side.add(map, x, fisher);
  }

  bool same_ranges(std::size_t layer, calibrator const& other) const {
    auto const &a = layers_[layer].key_ranges, &b = other.layers_[layer].key_ranges;
    auto const same = [](value_range x, value_range y) { return x.lower == y.lower && x.upper == y.upper; };
    bool all = std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
    for (auto const side : {&layer_statistics::key, &layer_statistics::value}) {
      auto const &mine = (layers_[layer].*side).channels, &theirs = (other.layers_[layer].*side).channels;
      all = all && std::equal(mine.begin(), mine.end(), theirs.begin(), theirs.end(),
                              [&](auto const& x, auto const& y) { return same(x.range, y.range); });
    }
    return all;
  }

  calibration_options options_;
  std::vector<layer_statistics> layers_;
  sketches tails_, value_ends_;  // of keys; of values where channels have histograms
  bool frozen_ = false;
};

}  // namespace kvquant
