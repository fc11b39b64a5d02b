#pragma once
/// \file
/// Numbers that decide how fast, not what.

#include <algorithm>
#include <cstddef>

#include "kvquant/attend/policy.hpp"

namespace kvquant::cuda {

/// Warps of a block below which larger blocks are preferred, where as many warps are at work in all.
inline constexpr int few_warps = 8;
/// Tiles whose turned queries are in shared memory together, where there is room.
inline constexpr int most_tiles_per_chunk = 32;
/// Threads of a block that takes tokens in: a page of one KV head, or one token.
inline constexpr int seal_threads = 256;

/// How one call is cut. A block costs as much as reading a few pages before it starts, so that it should have many; but
/// a single sequence should fill the device. On an H100, us per layer of 32/8/128 at 3 bits, splits of 8, 16, 32 and 64
/// pages: 23, 26, 36, 57 for one sequence of 8K tokens; 132, 107, 99, 87 for 16 of them; 54, 41, 41, 61 for one of 32K.
struct policy {
  std::size_t fewest_tiles, most_tiles;  ///< of a split

  std::size_t tiles_per_split(std::size_t tiles, std::size_t kv_heads, std::size_t multiprocessors) const {
    std::size_t const to_fill = tiles * kv_heads / std::max<std::size_t>(2 * multiprocessors, 1);
    return std::clamp(to_fill, fewest_tiles, most_tiles);
  }
};

struct policy_selector {
  constexpr policy operator()(policy_query const&) const { return {.fewest_tiles = 8, .most_tiles = 64}; }
};
static_assert(PolicySelector<policy_selector>);

}  // namespace kvquant::cuda
