#pragma once
/// \file
/// Levels and ranges of formats that are `by_channel`: what each channel loses at each width, which width it gets, and
/// what its codes read as.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/calibrate/allocate.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/kmeans.hpp"
#include "kvquant/calibrate/statistics.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/format/int8_grid.hpp"

namespace kvquant {

/// Which channels have the same levels.
enum class channel_levels {
  shared,  ///< one table per layer, side and width: x̂ = s_c · level[code] + z_c
  own      ///< a table per channel
};

/// How a side's channels are cut: units that share a width, in heads.
struct width_plan {
  std::vector<std::vector<std::size_t>> units{};  ///< [kv_heads · units] channels
  std::size_t units_per_head = 0;
  std::size_t quantum = 0;     ///< units of one width come in multiples of it
  std::size_t token_bits = 0;  ///< of a head's codes
  double slot_fraction = 0;    ///< of a page's elements, whose residuals are kept
};

namespace detail {

/// A channel's line: level → x.
struct line {
  double scale = 1, zero = 0;
};

/// Bins of one channel with mass, in x itself: Σ w, Σ w x, Σ w x² each, by rising x.
inline std::vector<moments> bins_in_x(channel_statistics const& channel) {
  affine const map = affine_of(channel.range);
  double const s = map.scale, z = map.zero;
  std::vector<moments> bins;
  for (moments const& it : channel.values.bins())
    if (it.mass > 0)
      bins.push_back({it.mass, s * it.first + z * it.mass, s * s * it.second + 2 * s * z * it.first + z * z * it.mass});
  return bins;
}

inline moments total_of(std::span<moments const> bins) {
  moments sum;
  for (moments const& it : bins) sum += it;
  return sum;
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

/// The values of one channel.
struct channel_values {
  std::vector<moments> bins;  ///< with mass, in x itself, by rising x
  /// The squared error from which on a value is worth a slot of its page, which takes its error away.
  double slot_error = std::numeric_limits<double>::infinity();

  /// Σ w · min((x − x̂)², slot_error): what codes lose, and what slots cost.
  double loss(line const& at, std::span<double const> levels) const {
    double sum = 0;
    for_each_nearest(bins, at, levels, [&](moments const& bin, double level) {
      sum += std::min(bin.squared_error(at.scale * level + at.zero), bin.mass * slot_error);
    });
    return sum;
  }
  /// `f(bin, level)` for the bins whose values no slot takes.
  template <class F>
  void for_each_coded(line const& at, std::span<double const> levels, F&& f) const {
    for_each_nearest(bins, at, levels, [&](moments const& bin, double level) {
      if (bin.squared_error(at.scale * level + at.zero) <= bin.mass * slot_error) f(bin, level);
    });
  }
};

/// The line that fits a channel's values to the levels which they are nearest to now. As it is where all are nearest to
/// one level.
inline line refitted(channel_values const& channel, line const& at, std::span<double const> levels) {
  double mass = 0, x = 0, q = 0, qq = 0, xq = 0;
  channel.for_each_coded(at, levels, [&](moments const& bin, double level) {
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

/// The levels of one channel of its own, and what they lose.
inline clustering own_levels(channel_values const& channel, std::size_t count) {
  constexpr int rounds = 4;  // what slots take depends on the levels
  line const identity;
  clustering best{std::vector<double>(count, 0.0), 0};
  if (channel.bins.empty()) return best;
  best = exact_kmeans(channel.bins, count);
  for (int round = 1; round < rounds && std::isfinite(channel.slot_error); ++round) {
    std::vector<moments> coded;
    channel.for_each_coded(identity, best.centroids, [&](moments const& bin, double) { coded.push_back(bin); });
    if (coded.empty()) break;
    best = exact_kmeans(coded, count);
  }
  best.objective = channel.loss(identity, best.centroids);
  return best;
}

/// One table for many channels and a line for each, by turns: the table exactly for the lines, then every line for the
/// table.
class shared_levels {
 public:
  explicit shared_levels(std::span<channel_values const> channels) : channels_(channels) {
    for (auto const& it : channels) {
      moments const all = total_of(it.bins);
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
  double loss(std::size_t channel) const { return channels_[channel].loss(lines_[channel], levels_); }

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
    std::vector<double> const none = {0};
    for (std::size_t c = 0; c < channels_.size(); ++c) {
      auto const place = [&](moments const& bin, double) {
        f((bin.mean() - lines_[c].zero) / lines_[c].scale, bin.mass * lines_[c].scale * lines_[c].scale);
      };
      if (levels_.empty())
        for_each_nearest(channels_[c].bins, lines_[c], none, place);
      else
        channels_[c].for_each_coded(lines_[c], levels_, place);
    }
  }

  std::span<channel_values const> channels_;
  std::vector<line> lines_;
  std::vector<double> levels_;
};

/// `f(line, levels)` of a channel's codes.
template <class F>
auto with_codes(channel_codes const& codes, std::size_t channel, F&& f) {
  affine const map = affine_of(codes.maps[channel]);
  auto const& table = codes.levels[codes.table_of[channel]];
  std::vector<double> const levels(table.begin(), table.end());
  return f(line{map.scale, map.zero}, levels);
}

/// Fits one side of one layer.
class channel_fitter {
 public:
  channel_fitter(side_statistics const& side, width_plan const& plan, channel_levels kind, int grid_limit,
                 bool int8_levels)
      : side_(side), plan_(plan), kind_(kind), grid_limit_(grid_limit), int8_levels_(int8_levels) {
    for (channel_statistics const& channel : side.channels) {
      channels_.push_back({bins_in_x(channel)});
      masses_.push_back(total_of(channels_.back().bins).mass);
    }
  }

  channel_codes fit() {
    channel_codes out = fit_once();
    for (int round = 0; round < slot_rounds && plan_.slot_fraction > 0; ++round) {
      set_slot_errors(out);
      out = fit_once();
    }
    objective_ = 0;
    for (std::size_t c = 0; c < channels_.size(); ++c)
      objective_ += with_codes(
          out, c, [&](line const& at, std::vector<double> const& levels) { return channels_[c].loss(at, levels); });
    return out;
  }

  /// Σ w (x − x̂)², or what a slot costs where it is less.
  double objective() const { return objective_; }
  /// Σ w (x − mean of the channel)².
  double spread() const {
    double sum = 0;
    for (auto const& it : channels_) {
      moments const all = total_of(it.bins);
      sum += all.squared_error(all.mean());
    }
    return sum;
  }

 private:
  static constexpr int first_rounds = 8, last_rounds = 4, slot_rounds = 2;

  channel_codes fit_once() const {
    channel_codes out;
    out.widths = choose_widths();
    for (channel_statistics const& channel : side_.channels) out.seen.push_back(channel.range);
    out.maps.resize(channels_.size());
    out.table_of.resize(channels_.size());
    if (kind_ == channel_levels::shared)
      fit_shared(out);
    else
      fit_own(out);
    return out;
  }

  std::vector<std::uint8_t> choose_widths() const {
    std::vector<width_losses> const losses = kind_ == channel_levels::shared ? shared_losses() : own_losses();
    std::vector<std::uint8_t> widths(channels_.size());
    for (std::size_t first = 0; first < plan_.units.size(); first += plan_.units_per_head) {
      std::vector<width_losses> of_head(plan_.units_per_head, width_losses{});
      for (std::size_t unit = 0; unit < plan_.units_per_head; ++unit)
        for (std::size_t const channel : plan_.units[first + unit])
          for (std::size_t i = 0; i < most_channel_bits; ++i) of_head[unit][i] += losses[channel][i];
      auto const chosen = allocate_widths(of_head, plan_.quantum, plan_.token_bits / plan_.units[first].size());
      for (std::size_t unit = 0; unit < plan_.units_per_head; ++unit)
        for (std::size_t const channel : plan_.units[first + unit]) widths[channel] = chosen[unit];
    }
    return widths;
  }
  std::vector<width_losses> shared_losses() const {
    std::vector<width_losses> losses(channels_.size());
    for (std::size_t width = 0; width < most_channel_bits; ++width) {
      shared_levels all(channels_);
      all.fit(std::size_t{2} << width, first_rounds);
      for (std::size_t c = 0; c < channels_.size(); ++c) losses[c][width] = all.loss(c);
    }
    return losses;
  }
  std::vector<width_losses> own_losses() const {
    std::vector<width_losses> losses(channels_.size());
    for (std::size_t c = 0; c < channels_.size(); ++c)
      for (std::size_t width = 0; width < most_channel_bits; ++width)
        losses[c][width] = own_levels(channels_[c], std::size_t{2} << width).objective;
    return losses;
  }

  /// A table for each width, from the channels that have it.
  void fit_shared(channel_codes& out) const {
    for (std::size_t width = 1; width <= most_channel_bits; ++width) {
      std::vector<std::size_t> members;
      std::vector<channel_values> values;
      for (std::size_t c = 0; c < channels_.size(); ++c)
        if (out.widths[c] == width) {
          members.push_back(c);
          values.push_back(channels_[c]);
        }
      shared_levels group(values);
      group.fit(std::size_t{1} << width, members.empty() ? 0 : last_rounds);
      std::vector<double> levels = group.levels();
      levels.resize(std::size_t{1} << width);
      double reach = 0;
      for (double const level : levels) reach = std::max(reach, std::abs(level));
      if (!(reach > 0)) reach = 1;
      for (double& level : levels) level /= reach;
      for (std::size_t i = 0; i < members.size(); ++i)
        set(out, members[i], out.levels.size(), {group.line_of(i).scale * reach, group.line_of(i).zero});
      out.levels.push_back(rounded(levels));
    }
  }
  /// A table for each channel, between its lowest and its highest level.
  void fit_own(channel_codes& out) const {
    for (std::size_t c = 0; c < channels_.size(); ++c) {
      std::vector<double> levels = own_levels(channels_[c], std::size_t{1} << out.widths[c]).centroids;
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

  /// A page's slots go to the elements with the largest F̄ (x − x̂)², where F̄ is the channel's mean: in each head, the
  /// share of its values with more than some price. A bin of mass w is w / F̄ values.
  void set_slot_errors(channel_codes const& codes) {
    struct candidate {
      double price, values;
    };
    std::size_t const d = plan_.units_per_head * plan_.units.front().size();
    for (std::size_t first = 0; first < channels_.size(); first += d) {
      std::vector<candidate> candidates;
      for (std::size_t c = first; c < first + d; ++c)
        with_codes(codes, c, [&](line const& at, std::vector<double> const& levels) {
          for_each_nearest(channels_[c].bins, at, levels, [&](moments const& bin, double level) {
            double const share = bin.mass / masses_[c],
                         error = bin.squared_error(at.scale * level + at.zero) / bin.mass;
            candidates.push_back({masses_[c] * error, share});
          });
        });
      std::sort(candidates.begin(), candidates.end(), [](auto const& a, auto const& b) { return a.price > b.price; });
      double left = plan_.slot_fraction * static_cast<double>(d), price = 0;
      for (candidate const& it : candidates) {
        price = it.price;
        left -= it.values;
        if (left <= 0) break;
      }
      for (std::size_t c = first; c < first + d; ++c)
        if (masses_[c] > 0 && price > 0) channels_[c].slot_error = price / masses_[c];
    }
  }

  side_statistics const& side_;
  width_plan const& plan_;
  channel_levels kind_;
  int grid_limit_;
  bool int8_levels_;
  std::vector<channel_values> channels_;  // [channels]
  std::vector<double> masses_;            // [channels] Σ w: as many times F̄ as each has values
  double objective_ = 0;
};

}  // namespace detail

}  // namespace kvquant
