#pragma once
/// \file
/// Which channels get how many bits: the choice of least loss, exactly.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"

namespace kvquant {

/// Bits of the widest codes of a channel.
inline constexpr std::size_t most_channel_bits = 4;

/// What a unit (a channel, or the two that RoPE turns together) loses with codes of 1, 2, 3 and 4 bits.
using width_losses = std::array<double, most_channel_bits>;
/// How many units have codes of 1, 2, 3 and 4 bits.
using width_counts = std::array<std::size_t, most_channel_bits>;

namespace detail {

/// The best choice with given counts. An assignment is optimal if and only if no closed chain of moves, a unit of each
/// width to the next, lowers the loss (the residual network of this transportation problem has no negative cycle). With
/// four widths there are 20 chains, and the best unit for each move is found by looking at all.
class width_assignment {
 public:
  width_assignment(std::span<width_losses const> losses, width_counts const& counts) : losses_(losses) {
    std::vector<std::size_t> order(losses.size());  // a first guess: the more a unit loses, the wider
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return losses[a].front() < losses[b].front(); });
    width_of_.resize(losses.size());
    std::size_t next = 0;
    for (std::size_t width = 0; width < counts.size(); ++width)
      for (std::size_t i = 0; i < counts[width]; ++i) width_of_[order[next++]] = width;
    for (std::size_t unit = 0; unit < losses.size(); ++unit) smallest_gain_ += losses[unit].front() * 1e-13;
    while (improve()) {
    }
  }

  double loss() const {
    double sum = 0;
    for (std::size_t unit = 0; unit < losses_.size(); ++unit) sum += losses_[unit][width_of_[unit]];
    return sum;
  }
  std::vector<std::uint8_t> bits() const {
    std::vector<std::uint8_t> out;
    for (std::size_t const width : width_of_) out.push_back(static_cast<std::uint8_t>(width + 1));
    return out;
  }

 private:
  struct move {
    double change = std::numeric_limits<double>::infinity();
    std::size_t unit = 0;
  };
  using chain = std::vector<std::size_t>;  // widths, each moves a unit to the next, the last to the first

  /// Applies the chain that lowers the loss most.
  bool improve() {
    for (auto& row : moves_) row.fill({});
    for (std::size_t unit = 0; unit < losses_.size(); ++unit) {
      std::size_t const from = width_of_[unit];
      for (std::size_t to = 0; to < most_channel_bits; ++to)
        if (double const change = losses_[unit][to] - losses_[unit][from];
            to != from && change < moves_[from][to].change)
          moves_[from][to] = {change, unit};
    }
    best_ = {};
    best_change_ = -smallest_gain_;
    for (std::size_t first = 0; first < most_channel_bits; ++first) {
      chain start = {first};
      extend(start, 0);
    }
    for (std::size_t i = 0; i < best_.size(); ++i) {
      std::size_t const to = best_[(i + 1) % best_.size()];
      width_of_[moves_[best_[i]][to].unit] = to;
    }
    return !best_.empty();
  }
  /// All chains that go on from `so_far`; their first width is their lowest, so that each is met once.
  void extend(chain& so_far, double change) {
    std::size_t const last = so_far.back();
    if (so_far.size() > 1 && change + moves_[last][so_far.front()].change < best_change_) {
      best_change_ = change + moves_[last][so_far.front()].change;
      best_ = so_far;
    }
    for (std::size_t next = so_far.front() + 1; next < most_channel_bits; ++next) {
      if (std::find(so_far.begin(), so_far.end(), next) != so_far.end()) continue;
      so_far.push_back(next);
      extend(so_far, change + moves_[last][next].change);
      so_far.pop_back();
    }
  }

  std::span<width_losses const> losses_;
  std::vector<std::size_t> width_of_;                          // [units] from 0
  double smallest_gain_ = std::numeric_limits<double>::min();  // below it, rounding could go on for ever
  std::array<std::array<move, most_channel_bits>, most_channel_bits> moves_;
  chain best_;
  double best_change_ = 0;
};

/// Calls `f(counts)` for all counts of `groups` with `bits` in all.
template <class F>
void for_each_count(std::size_t groups, std::size_t bits, F&& f) {
  for (std::size_t four = 0; four <= groups && 4 * four <= bits; ++four)
    for (std::size_t three = 0; three + four <= groups && 3 * three + 4 * four <= bits; ++three) {
      std::size_t const left = groups - three - four, left_bits = bits - 3 * three - 4 * four;
      if (left_bits < left || left_bits > 2 * left) continue;
      std::size_t const two = left_bits - left;
      f(width_counts{left - two, two, three, four});
    }
}

}  // namespace detail

/// The bits of every unit, 1 to 4, that lose least together: `bits` in all, and as many units of each width as a
/// multiple of `quantum`. Of equally good choices always the same. Throws `bad_value` where there is no such choice.
inline std::vector<std::uint8_t> allocate_widths(std::span<width_losses const> losses, std::size_t quantum,
                                                 std::size_t bits) {
  std::size_t const units = losses.size();
  require(quantum > 0 && units > 0 && units % quantum == 0 && bits % quantum == 0 && bits >= units &&
              bits <= most_channel_bits * units,
          errc::bad_value, "bit widths: ", bits, " bits for ", units, " units in groups of ", quantum,
          ", expected a multiple of ", quantum, " from ", units, " to ", most_channel_bits * units);
  std::vector<std::uint8_t> best;
  double least = std::numeric_limits<double>::infinity();
  detail::for_each_count(units / quantum, bits / quantum, [&](width_counts counts) {
    for (std::size_t& count : counts) count *= quantum;
    detail::width_assignment const choice(losses, counts);
    if (double const loss = choice.loss(); best.empty() || loss < least) {
      least = loss;
      best = choice.bits();
    }
  });
  return best;
}

}  // namespace kvquant
