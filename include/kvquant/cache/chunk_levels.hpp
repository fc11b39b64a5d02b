#pragma once
/// \file
/// The levels of chunks of channels as small whole numbers, for kernels that look them up in bytes.

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvquant/cache/channel_order.hpp"
#include "kvquant/format/int8_grid.hpp"

namespace kvquant {

/// What the codes of one side of a head read as, chunk by chunk; where all chunks have the same, the first has it.
struct chunk_levels {
  /// `origin` + multiple of the step, as bytes.
  std::array<std::array<std::uint8_t, 16>, most_chunks> entries{};
  std::array<float, most_chunks> steps{};  ///< [head_dim / 8] what a multiple is multiplied with

  /// Of the head's channels `channel_at(place)`, `width` bits each. Throws `unsupported` where the channels of a chunk
  /// have several tables.
  template <class Side, class ChannelAt>
  chunk_levels(Side const& side, channel_order const& order, std::size_t head_dim, int limit, int origin,
               ChannelAt&& channel_at) {
    using format = typename Side::format;
    typename format::table const* known = nullptr;
    for (std::size_t place = 0; place < head_dim; ++place) {
      typename format::table const& table = side.table(channel_at(place));
      std::size_t const chunk = place / chunk_channels;
      if (place % chunk_channels > 0)
        require(&table == known, errc::unsupported,
                "kernels read the levels of eight channels of a head, here channels have their own");
      else if (&table == known)
        repeat(chunk);
      else
        set<format>(chunk, table, order.widths[chunk], limit, origin);
      known = &table;
    }
  }

 private:
  void repeat(std::size_t chunk) {
    entries[chunk] = entries[chunk - 1];
    steps[chunk] = steps[chunk - 1];
  }
  template <Format F>
  void set(std::size_t chunk, typename F::table const& table, int width, int limit, int origin) {
    std::vector<float> levels(std::size_t{1} << width);
    for (std::size_t code = 0; code < levels.size(); ++code)
      levels[code] = F::decode(table, static_cast<typename F::code_type>(code));
    int8_grid const grid = nearest_int8_grid(levels, limit);
    steps[chunk] = grid.step;
    for (std::size_t i = 0; i < grid.multiples.size(); ++i)
      entries[chunk][i] = static_cast<std::uint8_t>(origin + grid.multiples[i]);
  }
};

}  // namespace kvquant
