#pragma once
/// \file
/// Every number that was chosen by measurement.

#include <cstddef>

#include "kvquant/attend/policy.hpp"

namespace kvquant::cpu {

struct attention_policy {
  std::size_t rows_per_block;   ///< queries of a sequence that one reading of a page serves
  std::size_t tiles_per_split;  ///< tiles of 64 tokens that one task reads; splits are merged in order
  std::size_t pages_per_group;  ///< pages whose scores go through one step of the softmax, at most `largest_group`
  bool turn_keys;               ///< keys to the page's base in 16 bits, instead of the query in 8
};

inline constexpr std::size_t largest_group = 4;

/// Where pages are read ahead to, as `__builtin_prefetch` counts it: into the second cache, which waits for more lines
/// at a time than the first one can. At 32/32/128, 8K tokens, cold, on a Zen 4: nuq4 takes 310 ns a token and f16 940;
/// read into the first cache, 500 and 1250.
inline constexpr int read_ahead_locality = 2;
/// Lines that a step reads ahead at least: the last ones would come too late. nuq3-1% as above: 340 ns a token with 4,
/// 400 with 3.
inline constexpr std::size_t fewest_lines_of_step = 4;

struct policy_selector {
  constexpr attention_policy operator()(policy_query const& it) const {
    auto const group = static_cast<std::size_t>(it.shape.q_heads / it.shape.kv_heads);
    std::size_t const rows = 64 / group > 0 ? 64 / group : 1;
    bool const many = group * it.queries > 4;
    // At 32/32/128, 8K tokens, cold, nuq4: splits of 16 tiles take 400 ns a token, of 64 tiles 350; groups of 1, 2 and
    // 4 pages 418, 350 and 372. Keys turned once pay from three query heads on.
    return {rows, 32, many ? std::size_t{1} : std::size_t{2}, group >= 3 || many};
  }
};
static_assert(PolicySelector<policy_selector>);

}  // namespace kvquant::cpu
