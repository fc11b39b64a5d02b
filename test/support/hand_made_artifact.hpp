#pragma once
/// \file
/// Artifacts without a calibration: ranges from keys at hand, levels fitted to the normal distribution.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/histogram.hpp"
#include "kvquant/calibrate/kmeans.hpp"
#include "kvquant/format/int8_grid.hpp"
#include "kvquant/rope/rope.hpp"
#include "test/support/random_matrix.hpp"

namespace kvquant::test {

struct hand_made_options {
  model_shape shape{};
  double outliers_k = 0.01, outliers_v = 0.01;
  int sinks = 1;
  bool q_norm = false;  ///< fitted formats decode to other levels than they compare with
};

/// Where a range ends, in standard deviations: nearer if what lies beyond can be kept sparse.
constexpr double reach_if_sparse = 2.5, reach_if_dense = 3.5;

inline std::vector<value_range> ranges_around_mean(view2d<float const> keys, double reach) {
  std::vector<value_range> ranges;
  for (std::size_t channel = 0; channel < keys.cols; ++channel) {
    moments all;
    for (std::size_t token = 0; token < keys.rows; ++token) all.add(keys(token, channel), 1);
    double const half_width = reach * all.deviation();
    ranges.push_back(
        make_range(static_cast<float>(all.mean() - half_width), static_cast<float>(all.mean() + half_width)));
  }
  return ranges;
}

/// The best `count` levels for normally distributed values in a range of `reach_if_sparse`.
inline std::vector<float> normal_levels(std::size_t count) {
  histogram values(500);
  for (std::size_t bin = 0; bin < values.bins().size(); ++bin) {
    double const x = (2 * static_cast<double>(bin) + 1) / static_cast<double>(values.bins().size()) - 1;
    values.bins()[bin].add(x, std::exp(-std::pow(reach_if_sparse * x, 2) / 2));
  }
  auto const fitted = exact_kmeans(values.bins(), count).centroids;
  return {fitted.begin(), fitted.end()};
}

template <Format F>
codebook normal_codebook(bool q_norm) {
  codebook book;
  if constexpr (F::fitted && !is_by_channel<F>) {
    static std::vector<float> const levels = normal_levels(std::size_t{1} << F::bits);
    book.levels = levels;
    book.norm = q_norm ? kvquant::q_norm{1.05, 0.01} : kvquant::q_norm{};
    for (float const level : levels) book.decode_levels.push_back(static_cast<float>(book.norm.apply(level)));
  }
  return book;
}

/// Differs from channel to channel, within a factor of four.
inline std::vector<float> mild_sensitivity(std::size_t channels, std::size_t seed) {
  std::vector<float> out(channels);
  for (std::size_t channel = 0; channel < channels; ++channel)
    out[channel] = 1.0f + static_cast<float>((7 * channel + seed) % 4);
  return out;
}

/// Widths for the units of a head, `unit_channels` each: 1, 2, 3, 4, 1, … for each eight channels, shuffled.
inline std::vector<std::uint8_t> shuffled_widths(std::size_t head_dim, std::size_t unit_channels,
                                                 std::mt19937_64& random) {
  std::vector<std::uint8_t> widths;
  for (std::size_t first = 0; first < head_dim; first += 8)
    widths.insert(widths.end(), 8 / unit_channels, static_cast<std::uint8_t>(1 + first / 8 % 4));
  std::shuffle(widths.begin(), widths.end(), random);
  return widths;
}

/// The same of a head's keys: both channels of a pair have one width.
inline std::vector<std::uint8_t> shuffled_key_widths(std::size_t head_dim, rope_pairing pairing, std::size_t rotary_dim,
                                                     std::mt19937_64& random) {
  auto const of_pairs = shuffled_widths(head_dim, 2, random);
  std::vector<std::uint8_t> widths(head_dim);
  for (std::size_t pair = 0; pair < of_pairs.size(); ++pair) {
    auto const [first, second] = pair_of(pairing, rotary_dim, pair);
    widths[first] = widths[second] = of_pairs[pair];
  }
  return widths;
}

/// Levels of `width` bits that differ a little from table to table, on the grid of their side.
inline std::vector<float> uneven_levels(std::size_t width, std::size_t table, bool is_key) {
  auto levels = normal_levels(std::size_t{1} << width);
  float const skew = 0.03f * (static_cast<float>(table % 5) - 2);
  for (float& level : levels) level += skew * (1 - level * level);
  snap_to_int8_grid(levels, is_key ? key_grid_limit : value_grid_limit);
  return levels;
}

/// The bits of every head are the same. Eight channels of one head and width have a table, both of a pair the same.
inline channel_codes hand_made_channels(model_shape const& shape, std::vector<value_range> const& ranges, bool is_key,
                                        std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto const d = static_cast<std::size_t>(shape.head_dim);
  auto const rotary = static_cast<std::size_t>(rope(shape.rope, shape.head_dim).rotary_dim());
  channel_codes out{std::vector<std::uint8_t>(ranges.size()), ranges, ranges, {}, {}};
  out.table_of.resize(ranges.size());
  for (std::size_t first = 0; first < ranges.size(); first += d) {
    auto const widths =
        is_key ? shuffled_key_widths(d, shape.rope.pairing, rotary, random) : shuffled_widths(d, 1, random);
    std::copy(widths.begin(), widths.end(), out.widths.begin() + static_cast<std::ptrdiff_t>(first));
    std::array<std::size_t, 5> met{};       // channels of each width so far
    std::array<std::uint16_t, 5> latest{};  // table of each width
    for (std::size_t place = 0; place < d; ++place) {
      auto const [even, odd] = is_key ? pair_of(shape.rope.pairing, rotary, place / 2) : channel_pair{place, place};
      std::size_t const channel = is_key && place % 2 == 1 ? odd : even, width = widths[channel];
      if (met[width]++ % 8 == 0) {
        latest[width] = static_cast<std::uint16_t>(out.levels.size());
        out.levels.push_back(uneven_levels(width, out.levels.size(), is_key));
      }
      out.table_of[first + channel] = latest[width];
    }
  }
  return out;
}

/// Of the first head's channels; all have as many.
inline int token_bits_of(channel_codes const& codes, int head_dim) {
  return std::accumulate(codes.widths.begin(), codes.widths.begin() + head_dim, 0);
}

/// `keys`, `values`: what ranges are taken from, a matrix [tokens, kv_channels] for each layer; values for formats that
/// are `by_channel` alone.
template <Spec S>
artifact<S> hand_made_artifact(hand_made_options const& options, std::vector<float_matrix> const& keys,
                               std::vector<float_matrix> const& values = {}) {
  artifact<S> it;
  it.info.spec = S::name();
  it.info.shape = options.shape;
  it.info.outlier_fraction_k = options.outliers_k;
  it.info.outlier_fraction_v = options.outliers_v;
  it.info.sinks = options.sinks;
  it.info.q_norm = options.q_norm;
  double const reach = options.outliers_k > 0 ? reach_if_sparse : reach_if_dense;
  for (std::size_t layer = 0; layer < keys.size(); ++layer)
    it.layers.push_back({.key_ranges = ranges_around_mean(keys[layer], reach),
                         .key = normal_codebook<typename S::key_format>(options.q_norm),
                         .value = normal_codebook<typename S::value_format>(options.q_norm),
                         .key_sensitivity = mild_sensitivity(keys[layer].cols, 2 * layer),
                         .value_sensitivity = mild_sensitivity(keys[layer].cols, 2 * layer + 1)});
  for (std::size_t layer = 0; layer < keys.size(); ++layer) {
    layer_artifact& to = it.layers[layer];
    if constexpr (is_by_channel<typename S::key_format>) {
      to.key_channels = hand_made_channels(options.shape, to.key_ranges, true, 50 + layer);
      it.info.key_token_bits = token_bits_of(to.key_channels, options.shape.head_dim);
    }
    if constexpr (is_by_channel<typename S::value_format>) {
      auto const ranges =
          ranges_around_mean(values.at(layer), options.outliers_v > 0 ? reach_if_sparse : reach_if_dense);
      to.value_channels = hand_made_channels(options.shape, ranges, false, 90 + layer);
      it.info.value_token_bits = token_bits_of(to.value_channels, options.shape.head_dim);
    }
  }
  return it;
}

}  // namespace kvquant::test
