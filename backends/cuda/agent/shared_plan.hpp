#pragma once
/// \file
/// How a block of threads divides its shared memory, for the host and the device alike.

#include <cstddef>
#include <cstdint>

#include "backends/cuda/kernel/params.hpp"
#include "backends/cuda/width_offsets.hpp"

namespace kvquant::cuda {

/// What is chosen when kernels are compiled.
struct attend_config {
  int bits;      ///< 2, 3, 4, 16, or `by_width`
  int head_dim;  ///< a multiple of 16 up to 256
  bool sparse;   ///< pages have slots

  /// Threads of a block and registers of a thread share what a multiprocessor has: 128 registers for 16 warps, of which
  /// outputs take head_dim / 4.
  KVQ_HD constexpr int most_warps() const { return head_dim <= 128 ? 16 : 8; }
  KVQ_HD constexpr int fragments() const { return head_dim / 16; }
  KVQ_HD constexpr bool scaled() const { return bits != 16; }
  /// Values have a range for each token.
  KVQ_HD constexpr bool ranged() const { return scaled() && bits != by_width; }
  /// Slabs that a warp has under way or at hand. The table of 4 bits leaves less room beside slots, long heads in any
  /// case.
  KVQ_HD constexpr int stages() const { return head_dim > 128 || (bits == 4 && sparse) ? 2 : 3; }
  /// Angles of long heads are left to the first-level cache.
  KVQ_HD constexpr bool angles_in_shared() const { return head_dim <= 128; }
  /// Of the tables that codes are looked up in (`decode/levels.cuh`, `decode/quartets.cuh`).
  KVQ_HD constexpr int levels_bytes() const {
    return bits == by_width ? width_offsets(head_dim).corrections : bits == 4 ? 256 * 2 * warp_lanes * 4 : 0;
  }
  /// Slots of each side that come with a slab, one or two a lane; what else it has is read from the page itself. At 1 %
  /// a slab has head_dim / 6 on average.
  KVQ_HD constexpr int staged_slots() const { return head_dim <= 128 ? 32 : 64; }
  /// Within slabs. Of widths by channel those of the most bits: how many there are is known at run time.
  KVQ_HD constexpr fragment_offsets offsets() const {
    std::size_t const code_bytes = bits == by_width
                                       ? static_cast<std::size_t>(2 * cells_for(head_dim, 4 * head_dim)) * cell_bytes
                                       : slab_code_bytes(bits, head_dim);
    return {code_bytes, ranged(), sparse ? 1u : 0u, 0};
  }
  KVQ_HD constexpr std::size_t slab_bytes() const { return offsets().slab_bytes; }
  KVQ_HD constexpr std::size_t stage_bytes() const {
    // Slots of both sides, as far apart as the lanes' pieces of codes.
    return slab_bytes() + (sparse ? warp_lanes * 16 : 0);
  }
  /// Residuals of one side of a slab, in binary16.
  KVQ_HD constexpr std::size_t residual_bytes() const {
    return sparse ? static_cast<std::size_t>(head_dim) * slab_tokens * 2 : 0;
  }
};

/// Ids that a table of pages has room for behind its last: they are read ahead whether they are there or not, by as
/// many slabs as a warp has under way and one more.
inline constexpr int spare_page_ids = (3 + 1) * 16 / slabs_per_page;

/// One query's part of a block's work.
struct query_column {
  float scale;               ///< of what the tensor cores give: score in powers of 2
  std::int32_t first, last;  ///< tokens of the run that it sees
  std::int32_t turn;         ///< index of the page turn of tile 0, which falls (before RoPE) or rises from tile to tile
};

struct shared_plan {
  std::uint32_t columns, key_maps, angles, base_queries, queries, rings, residuals, end;

  KVQ_HD constexpr shared_plan(attend_config const& config, int warps, int column_count, int tiles_per_chunk)
      : columns(bytes(config.levels_bytes())),
        key_maps(columns + bytes(query_columns * sizeof(query_column))),
        angles(key_maps + bytes(config.scaled() ? config.fragments() * 4 * 16 : 0)),
        base_queries(angles +
                     bytes(config.angles_in_shared() ? slabs_per_page * config.fragments() * warp_lanes * 16 : 0)),
        queries(base_queries + bytes(column_count * config.head_dim * 4)),
        rings(queries + bytes(tiles_per_chunk * query_bytes(config, column_count))),
        residuals(rings + bytes(warps * config.stages()) * bytes(config.stage_bytes())),
        end(residuals + bytes(warps) * bytes(config.residual_bytes())) {
    std::uint32_t const merging = bytes(warps * column_count) * bytes(partial_floats(config.head_dim) * sizeof(float));
    end = end > merging ? end : merging;
  }

  /// A query turned to one tile, as second operand: [head_dim / 32, rounded up][4] of 16 bytes. Of several columns two
  /// neighbours are read together, and must not meet in a bank: they are an odd number of 64 bytes apart.
  static KVQ_HD constexpr int query_column_bytes(int head_dim, int column_count) {
    int const pieces = (head_dim / 16 + 1) / 2;
    return (column_count > 1 ? pieces | 1 : pieces) * 64;
  }
  static KVQ_HD constexpr int query_bytes(attend_config const& config, int column_count) {
    return query_column_bytes(config.head_dim, column_count) * column_count;
  }

 private:
  static KVQ_HD constexpr std::uint32_t bytes(std::size_t count) { return static_cast<std::uint32_t>(count); }
};

}  // namespace kvquant::cuda
