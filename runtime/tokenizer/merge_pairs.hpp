#pragma once
/// \file
/// The merge loop that byte pair encoding and SentencePiece share.

#include <cstdint>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

#include "runtime/tokenizer.hpp"

namespace kvquant::runtime {

/// What two neighbours make together.
template <class Cost>
struct join_result {
  Cost cost;  ///< the lowest is done first
  token_id id;
};

/// Replaces neighbours by what they make together until no pair makes anything: always the cheapest pair, of equally
/// cheap ones the leftmost. n units take O(n log n) time whatever they are.
///
/// `symbols[i]` is the token of unit i, and of the units joined to it later. `join(left, right, end)` says what the
/// symbol of units [left, right) and that of units [right, end) make, as `std::optional<join_result<Cost>>`; it may
/// read symbols[left] and symbols[right]. At the end `emit(begin, end, id)` is called for each symbol in order.
template <class Join, class Emit>
void merge_pairs(std::vector<token_id>& symbols, Join const& join, Emit const& emit) {
  using cost_type = decltype(join(0u, 0u, 0u)->cost);
  struct candidate {
    cost_type cost;
    std::uint32_t left, right, end;
    token_id id;
    bool operator<(candidate const& other) const {  // the queue's top is its largest
      return cost != other.cost ? cost > other.cost : left > other.left;
    }
  };
  auto const count = static_cast<std::uint32_t>(symbols.size());
  // For the symbol that begins at a unit: where the one after it begins (0: no symbol begins here), and the one before.
  std::vector<std::uint32_t> next(count), previous(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1;
    previous[i] = i == 0 ? count : i - 1;
  }

  std::vector<candidate> candidates;
  auto const propose = [&](std::uint32_t left, std::uint32_t right, auto const& add) {
    if (auto const made = join(left, right, next[right]))
      add(candidate{made->cost, left, right, next[right], made->id});
  };
  for (std::uint32_t i = 0; i + 1 < count; ++i) propose(i, i + 1, [&](candidate c) { candidates.push_back(c); });
  std::priority_queue<candidate> queue({}, std::move(candidates));
  auto const enqueue = [&](candidate c) { queue.push(c); };

  while (!queue.empty()) {
    candidate const best = queue.top();
    queue.pop();
    // Stale unless both symbols still cover the same units.
    if (next[best.left] != best.right || next[best.right] != best.end) continue;
    symbols[best.left] = best.id;
    next[best.left] = best.end;
    next[best.right] = 0;
    if (best.end < count) {
      previous[best.end] = best.left;
      propose(best.left, best.end, enqueue);
    }
    if (previous[best.left] < count) propose(previous[best.left], best.left, enqueue);
  }
  for (std::uint32_t i = 0; i < count; i = next[i]) emit(i, next[i], symbols[i]);
}

}  // namespace kvquant::runtime
