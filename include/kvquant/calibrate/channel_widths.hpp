#pragma once
/// \file
/// Which width each channel gets in formats that are `by_channel`, and how the bits of a page divide between keys and
/// values: what loses least on the statistics.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvquant/calibrate/allocate.hpp"
#include "kvquant/calibrate/budget.hpp"
#include "kvquant/calibrate/kmeans.hpp"
#include "kvquant/calibrate/statistics.hpp"
#include "kvquant/quantize/affine.hpp"

namespace kvquant {

namespace detail {

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

/// [kv_channels] Σ w (x − x̂)² with codes of 1 to 4 bits. By levels of a channel's own: close to those of its group,
/// which depend on what widths others get.
inline std::vector<width_losses> channel_losses(side_statistics const& side) {
  std::vector<width_losses> losses;
  for (channel_statistics const& channel : side.channels) {
    auto const bins = bins_in_x(channel);
    width_losses& it = losses.emplace_back();
    for (std::size_t width = 0; !bins.empty() && width < most_channel_bits; ++width)
      it[width] = exact_kmeans(bins, std::size_t{2} << width).objective;
  }
  return losses;
}

struct chosen_widths {
  std::vector<std::uint8_t> widths;  ///< [kv_channels]
  double loss = 0;
};

/// The best ones with `token_bits` in every head.
inline chosen_widths choose_widths(std::span<width_losses const> losses, width_plan const& plan, int token_bits) {
  chosen_widths out{std::vector<std::uint8_t>(losses.size())};
  for (std::size_t first = 0; first < plan.units.size(); first += plan.units_per_head) {
    std::vector<width_losses> of_head(plan.units_per_head, width_losses{});
    for (std::size_t unit = 0; unit < plan.units_per_head; ++unit)
      for (std::size_t const channel : plan.units[first + unit])
        for (std::size_t i = 0; i < most_channel_bits; ++i) of_head[unit][i] += losses[channel][i];
    auto const chosen =
        allocate_widths(of_head, plan.quantum, static_cast<std::size_t>(token_bits) / plan.units[first].size());
    for (std::size_t unit = 0; unit < plan.units_per_head; ++unit) {
      out.loss += of_head[unit][chosen[unit] - 1u];
      for (std::size_t const channel : plan.units[first + unit]) out.widths[channel] = chosen[unit];
    }
  }
  return out;
}

/// [layers] `channel_losses` of one side of a model.
using side_losses = std::vector<std::vector<width_losses>>;

inline double loss_of(side_losses const& side, width_plan const& plan, int token_bits) {
  double sum = 0;
  for (auto const& layer : side) sum += choose_widths(layer, plan, token_bits).loss;
  return sum;
}

/// Bits of one token's codes of a head.
struct side_bits {
  int key = 0, value = 0;
};

/// Both sides of a model, which have twice `even` bits together: a group of channels gives one bit from side to side
/// while `key loss + value_weight · value loss` falls.
class bit_division {
 public:
  bit_division(side_losses const& keys, side_losses const& values, model_shape const& shape, double value_weight)
      : keys_(keys),
        values_(values),
        key_plan_(plan_of(shape, true)),
        value_plan_(plan_of(shape, false)),
        fewest_(shape.head_dim),
        most_(static_cast<int>(most_channel_bits) * shape.head_dim),
        value_weight_(value_weight) {}

  side_bits from(int even) const {
    side_bits best{even, even};
    double least = loss(best);
    for (int const step : {width_group, -width_group})
      for (side_bits next = best; move(next, step);) {
        double const reached = loss(next);
        if (!(reached < least)) break;
        best = next;
        least = reached;
      }
    return best;
  }

 private:
  bool move(side_bits& bits, int step) const {
    bits.key += step;
    bits.value -= step;
    return std::min(bits.key, bits.value) >= fewest_ && std::max(bits.key, bits.value) <= most_;
  }
  double loss(side_bits const& bits) const {
    return loss_of(keys_, key_plan_, bits.key) + value_weight_ * loss_of(values_, value_plan_, bits.value);
  }

  side_losses const& keys_;
  side_losses const& values_;
  width_plan key_plan_, value_plan_;
  int fewest_, most_;
  double value_weight_;
};

}  // namespace detail

}  // namespace kvquant
