#pragma once
/// \file
/// What the kernels of sealing are given, whatever the instructions.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "backends/cpu/aligned.hpp"
#include "backends/cpu/tables.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/cache/page_sealer.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/format/level_table.hpp"

namespace kvquant::cpu {

/// The levels of a format as vectors are searched: its boundaries by bisection, each step a table.
struct level_search_tables {
  static constexpr int most_bits = 4;
  float boundary[most_bits][lanes]{};  ///< of step s: 2^s, by the code's leading bits so far
  float level[lanes]{};

  template <int Bits>
  void set(level_table<Bits> const& it) {
    static_assert(Bits <= most_bits);
    for (int step = 0; step < Bits; ++step)
      for (int leading = 0; leading < 1 << step; ++leading)
        boundary[step][leading] = it.boundary[((2 * leading + 1) << (Bits - 1 - step)) - 1];
    for (int code = 0; code < 1 << Bits; ++code) level[code] = it.level[code];
  }
};

/// The tables of sixteen channels side by side.
struct own_level_tables {
  static constexpr std::size_t most = std::size_t{1} << level_search_tables::most_bits;
  float boundary[most - 1][lanes];
  float level[most][lanes];

  void set(std::size_t lane, level_table<level_search_tables::most_bits> const& it) {
    for (std::size_t i = 0; i + 1 < most; ++i) boundary[i][lane] = it.boundary[i];
    for (std::size_t i = 0; i < most; ++i) level[i][lane] = it.level[i];
  }
};

/// What is the same for all pages of one side of a layer; [kv_channels] each, but for the levels.
struct side_tables {
  level_search_tables levels{};                  ///< of all channels, or
  line_vector<own_level_tables> own_levels{};    ///< [kv_channels / lanes], where channels have their own
  std::vector<float> scales{}, zeros{};          ///< of maps that belong to channels
  std::vector<float> seen_least{}, seen_most{};  ///< in calibration, where what lies beyond is counted

  std::size_t bytes() const {
    return sizeof levels + own_levels.size() * sizeof(own_level_tables) +
           (scales.size() + zeros.size() + seen_least.size() + seen_most.size()) * sizeof(float);
  }
};

/// What a side's maps belong to: keys have one for each channel, values for each token.
enum class map_of { channel, token };

/// One side of one KV head, to be sealed.
struct page_side {
  view2d<half const> tokens;           ///< the last of the page, [page_tokens − reused, head_dim]
  std::size_t first_channel;           ///< of the head, in the side's tables
  float const *scales, *zeros;         ///< of the maps: [head_dim] or [page_tokens − reused]
  std::span<float const> sensitivity;  ///< [head_dim]
  side_tables const& tables;
  std::span<std::uint8_t> codes;  ///< [page_tokens, head_dim]; those of the reused tokens are there
  std::span<outlier> slots;       ///< in: those of the re-opened page

  std::size_t head_dim() const { return tokens.cols; }
  std::size_t reused() const { return page_tokens - tokens.rows; }
};

/// What sealing writes on its way; one for each worker.
struct sealing_scratch {
  slot_selector slots;
  line_vector<half> residuals;                    ///< [page_tokens, head_dim]
  line_vector<float> weights;                     ///< [page_tokens, head_dim]
  line_vector<float> largest, smallest;           ///< of blocks of weights, or of a token's values
  std::vector<std::uint16_t> masks, masks_below;  ///< of what reaches a bound, a bit for each number
  std::vector<std::uint16_t> found, chosen;       ///< indices of those

  sealing_scratch(std::size_t head_dim, std::size_t kv_channels)
      : residuals(page_tokens * head_dim),
        weights(page_tokens * head_dim),
        largest(std::max(page_tokens * head_dim, kv_channels)),
        smallest(kv_channels),
        masks(largest.size() / lanes + word_bits),
        masks_below(kv_channels / lanes + word_bits),
        found(largest.size() + word_bits),
        chosen(found.size()) {}

 private:
  static constexpr std::size_t word_bits = 64;  // beyond the end: lists are read and written by whole words
};

/// The kernels of one set of instructions for one spec.
struct sealing_kernels {
  void (*seal_keys)(page_side const&, sealing_scratch&);
  void (*seal_values)(page_side const&, sealing_scratch&);
  /// Numbers of the new tokens beyond what was seen in calibration.
  std::uint64_t (*count_clamped)(page_side const&);
  /// Of the numbers from the `rank`-th smallest to the `rank`-th largest.
  value_range (*range_of)(std::span<half const> token, std::size_t rank, sealing_scratch&);
};

}  // namespace kvquant::cpu
