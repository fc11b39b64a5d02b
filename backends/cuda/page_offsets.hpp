#pragma once
/// \file
/// The sizes of a page in fragment order by its geometry.

#include <cstddef>

#include "backends/cuda/quartets.hpp"
#include "backends/cuda/slab_shape.hpp"
#include "kvquant/cache/page.hpp"

namespace kvquant::cuda {

/// `bits`: as `attend_config::bits`.
inline fragment_offsets offsets_of(page_geometry const& geometry, int bits) {
  int const head_dim = static_cast<int>(geometry.head_dim);
  std::size_t const cells = static_cast<std::size_t>(cells_for(head_dim, static_cast<int>(geometry.k_token_bits)) +
                                                     cells_for(head_dim, static_cast<int>(geometry.v_token_bits)));
  return {bits == by_width ? cells * cell_bytes : slab_code_bytes(bits, head_dim), geometry.range_bytes() > 0,
          geometry.k_slots, geometry.v_slots};
}

inline std::size_t page_bytes_of(page_geometry const& geometry, int bits) {
  return (offsets_of(geometry, bits).end + page_alignment - 1) / page_alignment * page_alignment;
}

}  // namespace kvquant::cuda
