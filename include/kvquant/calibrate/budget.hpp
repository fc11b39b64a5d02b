#pragma once
/// \file
/// What a page of a format that is `by_channel` may hold: how its bits divide into codes and slots, and which channels
/// share a width.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "kvquant/calibrate/allocate.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/quantize/outlier.hpp"
#include "kvquant/quantize/spec.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant {

/// Channels of one width come in groups of so many, which kernels meet in one vector.
inline constexpr int width_group = 8;

/// What is asked for.
struct channel_budget {
  double bits = 3;              ///< of an element, sparse ones included
  double outlier_fraction = 0;  ///< of a page's elements; their 32 bits each are paid from `bits`
};

/// The bits of one side of a page, cut into codes and slots.
struct page_budget {
  int token_bits = 0;           ///< of a head's codes
  double outlier_fraction = 0;  ///< of a page's elements
};

/// Slots take 32 bits each, codes what is left, in groups of channels: as many groups as leave nearest to the slots
/// that were asked for, but some where there are to be any. Throws `bad_value` for fewer bits than codes of 1 bit need.
template <Spec S>
page_budget budget_of(channel_budget const& wanted, int head_dim) {
  constexpr int slot_bits = 8 * sizeof(outlier);
  double const elements = static_cast<double>(S::page_tokens) * head_dim;
  require(std::isfinite(wanted.bits) && wanted.bits > 0 && wanted.bits <= 16 && wanted.outlier_fraction >= 0 &&
              wanted.outlier_fraction < 1,
          errc::bad_value, "fit: ", wanted.bits, " bits with a fraction of ", wanted.outlier_fraction,
          " outliers, expected up to 16 bits and [0, 1)");
  double const all = std::round(wanted.bits * elements), slots = std::round(wanted.outlier_fraction * elements);
  double const of_codes = (all - slots * slot_bits) / S::page_tokens;
  require(of_codes >= head_dim, errc::bad_value, "fit: ", wanted.bits, " bits with a fraction of ",
          wanted.outlier_fraction, " outliers leave ", of_codes / head_dim, " for a code, expected at least 1");
  auto const left_for_slots = [&](int token_bits) {
    return std::floor((all - static_cast<double>(token_bits) * S::page_tokens) / slot_bits);
  };
  int token_bits = static_cast<int>(of_codes) / width_group * width_group;
  if (slots > 0 && of_codes - token_bits > width_group / 2 && left_for_slots(token_bits + width_group) > 0)
    token_bits += width_group;
  token_bits = std::min(token_bits, static_cast<int>(most_channel_bits) * head_dim);
  return {token_bits, slots > 0 ? left_for_slots(token_bits) / elements : 0};
}

/// How a side's channels are cut: units that share a width, in heads.
struct width_plan {
  std::vector<std::vector<std::size_t>> units{};  ///< [kv_heads · units] channels
  std::size_t units_per_head = 0;                 ///< of each KV head
  std::size_t quantum = 0;                        ///< units of one width come in multiples of it
};

/// Keys by the pairs that RoPE turns, values channel by channel.
inline width_plan plan_of(model_shape const& shape, bool by_pairs) {
  auto const d = static_cast<std::size_t>(shape.head_dim), heads = static_cast<std::size_t>(shape.kv_heads);
  auto const rotary = static_cast<std::size_t>(rope(shape.rope, shape.head_dim).rotary_dim());
  width_plan plan{.units_per_head = by_pairs ? d / 2 : d,
                  .quantum = static_cast<std::size_t>(by_pairs ? width_group / 2 : width_group)};
  for (std::size_t head = 0; head < heads; ++head)
    for (std::size_t unit = 0; unit < plan.units_per_head; ++unit) {
      auto const [first, second] = pair_of(shape.rope.pairing, rotary, unit);
      if (by_pairs)
        plan.units.push_back({head * d + first, head * d + second});
      else
        plan.units.push_back({head * d + unit});
    }
  return plan;
}

}  // namespace kvquant
