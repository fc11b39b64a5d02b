#pragma once
/// \file
/// Finds quartets for a head whose channels have widths of their own.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backends/cuda/quartets.hpp"
#include "kvquant/cache/channel_order.hpp"
#include "kvquant/core/error.hpp"

namespace kvquant::cuda {

static_assert(chunk_of_channels == chunk_channels);  // the device does not see the latter

/// Which of a side's chunks go together, in the order in which they lie.
class quartet_plan {
 public:
  std::vector<quartet> quartets;
  std::vector<std::size_t> chunks;  ///< by place; of the last quartet there may be two only

  /// `widths`: of chunks, rising. `first_cell`: of the side.
  quartet_plan(std::span<std::uint8_t const> widths, int first_cell)
      : next_cell_(first_cell), stored_(widths.begin(), widths.end()), chunks_(stored_.size()) {
    for (std::size_t i = 0; i < chunks_.size(); ++i) chunks_[i] = i;
    bool const odd = chunks_.size() % quartet_chunks != 0;
    std::array<std::size_t, 2> last{};
    int last_kind = 0;
    if (odd) last_kind = take_last(last);
    round_up();
    for (int const kind : {w4444, w3333, w2222, w1111, w4431, w4332, w4211, w4422, w3212, w3311})
      while (holds(kind)) take(kind);
    KVQ_ASSERT(chunks_.empty());
    if (odd) {
      chunks.insert(chunks.end(), last.begin(), last.end());
      add(last_kind);
    }
  }

 private:
  /// The two widest, in the kind of quartet that is least for them.
  int take_last(std::array<std::size_t, 2>& last) {
    last = {chunks_.back(), chunks_[chunks_.size() - 2]};
    chunks_.erase(chunks_.end() - 2, chunks_.end());
    int best = w4444;
    for (int kind = 0; kind < quartet_kinds; ++kind)
      if (width_in(kind, 0) >= stored_[last[0]] && width_in(kind, 1) >= stored_[last[1]] &&
          cells_of(kind) < cells_of(best))
        best = kind;
    return best;
  }
  /// Until what is stored fills whole cells.
  void round_up() {
    int sum = 0;
    for (std::size_t const chunk : chunks_) sum += stored_[chunk];
    for (auto widest = chunks_.rbegin(); sum % 4 != 0; ++sum) {
      while (stored_[*widest] == 4) ++widest;
      ++stored_[*widest];
    }
  }

  bool holds(int kind) const {
    std::array<int, 5> wanted{};
    for (int chunk = 0; chunk < quartet_chunks; ++chunk) ++wanted[static_cast<std::size_t>(width_in(kind, chunk))];
    for (int width = 1; width <= 4; ++width)
      if (std::count_if(chunks_.begin(), chunks_.end(), [&](std::size_t it) { return stored_[it] == width; }) <
          wanted[static_cast<std::size_t>(width)])
        return false;
    return true;
  }
  void take(int kind) {
    for (int chunk = 0; chunk < quartet_chunks; ++chunk) {
      auto const it = std::find_if(chunks_.begin(), chunks_.end(),
                                   [&](std::size_t which) { return stored_[which] == width_in(kind, chunk); });
      chunks.push_back(*it);
      chunks_.erase(it);
    }
    add(kind);
  }
  void add(int kind) {
    quartets.push_back({static_cast<std::uint16_t>(kind), static_cast<std::uint16_t>(next_cell_ * cell_bytes)});
    next_cell_ += cells_of(kind);
  }

  int next_cell_;
  std::vector<std::uint8_t> stored_;  // bits of each chunk
  std::vector<std::size_t> chunks_;   // that are in no quartet yet, by rising width
};

/// The widths of both sides of a head, and where they lie.
struct width_order {
  channel_order keys, values;
  quartet_plan k, v;
  head_widths places{};

  /// `geometry`: of the head. Throws as `key_order` and `value_order`.
  explicit width_order(page_geometry const& geometry)
      : keys(key_order(geometry)),
        values(value_order(geometry)),
        k(std::span(keys.widths).first(geometry.head_dim / chunk_channels), 0),
        v(std::span(values.widths).first(geometry.head_dim / chunk_channels),
          cells_for(static_cast<int>(geometry.head_dim), static_cast<int>(geometry.k_token_bits))) {
    for (std::size_t chunk = 0; chunk < geometry.head_dim / chunk_channels; ++chunk) {
      // A fragment's pairs 2t and 2t + 1 are those of two chunks, as are its channels g and g + 8.
      std::size_t const fragment = chunk / 2, half = chunk % 2;
      for (std::size_t i = 0; i < chunk_channels / 2; ++i)
        place(fragment * 8 + 2 * i + half, keys.at[k.chunks[chunk] * chunk_channels / 2 + i], places.pair_at,
              places.place_of_pair);
      for (std::size_t i = 0; i < chunk_channels; ++i)
        place(fragment * 16 + half * 8 + i, values.at[v.chunks[chunk] * chunk_channels + i], places.channel_at,
              places.place_of_channel);
    }
    std::copy(k.quartets.begin(), k.quartets.end(), places.quartets[0]);
    std::copy(v.quartets.begin(), v.quartets.end(), places.quartets[1]);
  }

 private:
  static void place(std::size_t at, std::uint8_t it, std::uint8_t* at_place, std::uint8_t* place_of) {
    at_place[at] = it;
    place_of[it] = static_cast<std::uint8_t>(at);
  }
};

}  // namespace kvquant::cuda
