#pragma once
/// \file
/// Levels and ranges of formats that are `by_channel`: what the codes of channels read as whose widths are chosen.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/budget.hpp"
#include "kvquant/calibrate/channel_widths.hpp"
#include "kvquant/calibrate/kmeans.hpp"
#include "kvquant/calibrate/statistics.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/format/int8_grid.hpp"

namespace kvquant {

/// Which channels have the same levels.
enum class channel_levels {
  shared,  ///< one table for eight channels of a head: x̂ = s_c · level[code] + z_c
  own      ///< a table per channel
};

namespace detail {

/// A channel's line: level → x.
struct line {
  double scale = 1, zero = 0;
};

inline moments total_of(std::span<moments const> bins) {
  moments sum;
  for (moments const& it : bins) sum += it;
  return sum;
}

/// Σ w ((x − mean) / deviation)³ / Σ w; 0 of equal values. Within a bin all lie at its mean.
inline double skewness(std::span<moments const> bins) {
  moments const all = total_of(bins);
  double const deviation = all.deviation();
  if (!(deviation > 0)) return 0;
  double cubes = 0;
  for (moments const& it : bins) cubes += it.mass * std::pow((it.mean() - all.mean()) / deviation, 3);
  return cubes / all.mass;
}

/// `f(bin, level)` for every bin, with the level that is nearest to its mean on the line. Levels and bins rise.
template <class F>
void for_each_nearest(std::span<moments const> bins, line const& at, std::span<double const> levels, F&& f) {
  std::size_t nearest = 0;
  for (moments const& bin : bins) {
    double const y = (bin.mean() - at.zero) / at.scale;
    while (nearest + 1 < levels.size() && (levels[nearest + 1] == levels[nearest] ||  // rounding makes some equal
                                           std::abs(levels[nearest + 1] - y) < std::abs(levels[nearest] - y)))
      ++nearest;
    f(bin, levels[nearest]);
  }
}

inline double error_of(std::span<moments const> bins, line const& at, std::span<double const> levels) {
  double sum = 0;
  for_each_nearest(bins, at, levels,
                   [&](moments const& bin, double level) { sum += bin.squared_error(at.scale * level + at.zero); });
  return sum;
}

/// The line that fits a channel's values to the levels which they are nearest to now. As it is where all are nearest to
/// one level.
inline line refitted(std::span<moments const> bins, line const& at, std::span<double const> levels) {
  double mass = 0, x = 0, q = 0, qq = 0, xq = 0;
  for_each_nearest(bins, at, levels, [&](moments const& bin, double level) {
    mass += bin.mass;
    x += bin.first;
    q += bin.mass * level;
    qq += bin.mass * level * level;
    xq += bin.first * level;
  });
  if (!(mass > 0)) return at;
  double const variance = qq - q * q / mass, covariance = xq - x * q / mass;
  if (!(variance > 1e-12 * mass) || !(covariance > 0)) return at;
  double const scale = covariance / variance;
  return {scale, (x - scale * q) / mass};
}

/// One table for many channels and a line for each, by turns: the table exactly for the lines, then every line for the
/// table.
class shared_levels {
 public:
  explicit shared_levels(std::span<std::vector<moments> const> channels) : channels_(channels) {
    for (auto const& bins : channels) {
      moments const all = total_of(bins);
      lines_.push_back({std::max(all.deviation(), double{std::numeric_limits<float>::min()}), all.mean()});
    }
  }

  void fit(std::size_t count, int rounds) {
    for (int round = 0; round < rounds; ++round) {
      levels_ = best_levels(count);
      for (std::size_t c = 0; c < channels_.size(); ++c) lines_[c] = refitted(channels_[c], lines_[c], levels_);
    }
  }

  std::vector<double> const& levels() const { return levels_; }
  line const& line_of(std::size_t channel) const { return lines_[channel]; }

 private:
  static constexpr std::size_t pooled_bins = 2048;

  /// On all channels' values where their lines put them, by the loss that an error there has.
  std::vector<double> best_levels(std::size_t count) const {
    double farthest = 0;
    for_each_placed([&](double y, double) { farthest = std::max(farthest, std::abs(y)); });
    if (!(farthest > 0)) return std::vector<double>(count, 0.0);
    histogram all(pooled_bins);
    for_each_placed([&](double y, double weight) { all.add(static_cast<float>(y / farthest), weight); });
    auto levels = exact_kmeans(all.bins(), count).centroids;
    for (double& level : levels) level *= farthest;
    return levels;
  }
  template <class F>
  void for_each_placed(F&& f) const {
    for (std::size_t c = 0; c < channels_.size(); ++c)
      for (moments const& bin : channels_[c])
        f((bin.mean() - lines_[c].zero) / lines_[c].scale, bin.mass * lines_[c].scale * lines_[c].scale);
  }

  std::span<std::vector<moments> const> channels_;
  std::vector<line> lines_;
  std::vector<double> levels_;
};

/// Fits one side of one layer. Slots are not foreseen: leaving out what they will take made the fit worse, for pages
/// differ in how much they need them.
class channel_fitter {
 public:
  channel_fitter(side_statistics const& side, channel_levels kind, int grid_limit, bool int8_levels)
      : side_(side), kind_(kind), grid_limit_(grid_limit), int8_levels_(int8_levels) {
    for (channel_statistics const& channel : side.channels) channels_.push_back(bins_in_x(channel));
  }

  channel_codes fit(width_plan const& plan, std::vector<std::uint8_t> widths) const {
    channel_codes out;
    out.widths = std::move(widths);
    for (channel_statistics const& channel : side_.channels) out.seen.push_back(channel.range);
    out.maps.resize(channels_.size());
    out.table_of.resize(channels_.size());
    if (kind_ == channel_levels::shared)
      fit_shared(plan, out);
    else
      fit_own(out);
    return out;
  }

  /// Σ w (x − x̂)².
  double error(channel_codes const& codes) const {
    double sum = 0;
    for (std::size_t c = 0; c < channels_.size(); ++c) {
      affine const map = affine_of(codes.maps[c]);
      auto const& table = codes.levels[codes.table_of[c]];
      sum += error_of(channels_[c], {map.scale, map.zero}, std::vector<double>(table.begin(), table.end()));
    }
    return sum;
  }
  /// Σ w (x − mean of the channel)².
  double spread() const {
    double sum = 0;
    for (auto const& bins : channels_) {
      moments const all = total_of(bins);
      sum += all.squared_error(all.mean());
    }
    return sum;
  }

 private:
  static constexpr int rounds = 12;

  /// Tables for groups of a head's units: of one width, and alike in skew, which no line can give a table.
  void fit_shared(width_plan const& plan, channel_codes& out) const {
    std::vector<double> const skews = skews_of(plan);
    for (std::size_t head = 0; head < plan.units.size(); head += plan.units_per_head) {
      std::vector<std::size_t> order(plan.units_per_head);
      std::iota(order.begin(), order.end(), head);
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        std::uint8_t const width_a = out.widths[plan.units[a].front()], width_b = out.widths[plan.units[b].front()];
        return width_a != width_b ? width_a < width_b : skews[a] < skews[b];
      });
      for (std::size_t first = 0; first < order.size(); first += plan.quantum) {
        std::vector<std::size_t> members;
        for (std::size_t const unit : std::span(order).subspan(first, plan.quantum))
          members.insert(members.end(), plan.units[unit].begin(), plan.units[unit].end());
        fit_group(members, out);
      }
    }
  }
  /// [units] the mean skewness of the channels' values.
  std::vector<double> skews_of(width_plan const& plan) const {
    std::vector<double> skews;
    for (auto const& unit : plan.units) {
      double sum = 0;
      for (std::size_t const channel : unit) sum += skewness(channels_[channel]);
      skews.push_back(sum / static_cast<double>(unit.size()));
    }
    return skews;
  }
  /// One table for channels of one width, its levels in [-1, 1].
  void fit_group(std::span<std::size_t const> members, channel_codes& out) const {
    std::vector<std::vector<moments>> bins;
    for (std::size_t const channel : members) bins.push_back(channels_[channel]);
    shared_levels group(bins);
    group.fit(std::size_t{1} << out.widths[members.front()], rounds);
    std::vector<double> levels = group.levels();
    double reach = 0;
    for (double const level : levels) reach = std::max(reach, std::abs(level));
    if (!(reach > 0)) reach = 1;
    for (double& level : levels) level /= reach;
    for (std::size_t i = 0; i < members.size(); ++i)
      set(out, members[i], out.levels.size(), {group.line_of(i).scale * reach, group.line_of(i).zero});
    out.levels.push_back(rounded(levels));
  }
  /// A table for each channel, between its lowest and its highest level.
  void fit_own(channel_codes& out) const {
    for (std::size_t c = 0; c < channels_.size(); ++c) {
      std::size_t const count = std::size_t{1} << out.widths[c];
      std::vector<double> levels(count, 0.0);
      if (!channels_[c].empty()) levels = exact_kmeans(channels_[c], count).centroids;
      line const at{std::max((levels.back() - levels.front()) / 2, double{std::numeric_limits<float>::min()}),
                    (levels.back() + levels.front()) / 2};
      set(out, c, c, at);
      for (double& level : levels) level = (level - at.zero) / at.scale;
      out.levels.push_back(rounded(levels));
    }
  }

  static void set(channel_codes& out, std::size_t channel, std::size_t table, line const& at) {
    out.table_of[channel] = static_cast<std::uint16_t>(table);
    out.maps[channel] = make_range(static_cast<float>(at.zero - at.scale), static_cast<float>(at.zero + at.scale));
  }
  std::vector<float> rounded(std::vector<double> const& levels) const {
    std::vector<float> out(levels.begin(), levels.end());
    if (int8_levels_) snap_to_int8_grid(out, grid_limit_);
    return out;
  }

  side_statistics const& side_;
  channel_levels kind_;
  int grid_limit_;
  bool int8_levels_;
  std::vector<std::vector<moments>> channels_;  // [channels] bins
};

}  // namespace detail

}  // namespace kvquant
