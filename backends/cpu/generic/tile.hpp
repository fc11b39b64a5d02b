#pragma once
/// \file
/// Up to 64 consecutive tokens of one KV head as floats, from wherever they are stored.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backends/cpu/page_decoder.hpp"
#include "backends/cpu/plan.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/cache/row_major_layout.hpp"
#include "kvquant/cache/sequence.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant::cpu::generic {

/// Rotates rows of keys by their place in the tile: what is left of RoPE once the query is at the tile's base.
inline void rotate_keys(view2d<float> k, rope const& rotation, rope_angle_table<float> const& page_angles) {
  if (rotation.rotary_dim() == 0) return;
  for (std::size_t row = 0; row < k.rows; ++row) rotation.rotate(k.row(row), page_angles[row]);
}

/// Reads tiles of one layer: decoded codes with their residuals, or exact tokens.
template <PackedSpec S>
class tile_reader {
 public:
  tile_reader(artifact<S> const& it, int layer, page_geometry const& geometry)
      : geometry_(geometry), pages_(it, layer, geometry), kv_heads_(static_cast<std::size_t>(it.info.shape.kv_heads)) {}

  /// Scratch of one thread, and what was read last.
  struct buffer {
    canonical_page<S> page;
    std::vector<float> k, v;  ///< [page_tokens, head_dim]
    view2d<float> keys(std::size_t tokens, std::size_t d) { return {k.data(), tokens, d}; }
    view2d<float> values(std::size_t tokens, std::size_t d) { return {v.data(), tokens, d}; }
  };
  void prepare(buffer& it) const {
    it.k.resize(geometry_.elements());
    it.v.resize(geometry_.elements());
  }

  void read(layer_view const& cache, run which, std::size_t index, std::size_t kv_head, buffer& out) const {
    if (which == run::pages)
      pages_.decode(cache.page(index, kv_head, kv_heads_), kv_head, out.page, out.k.data(), out.v.data());
    else if (which == run::sinks)
      read_exact(cache.sink_k, cache.sink_v, index, kv_head, out);
    else
      read_exact(cache.tail_k, cache.tail_v, index, kv_head, out);
  }

 private:
  void read_exact(view2d<half const> k, view2d<half const> v, std::size_t index, std::size_t kv_head,
                  buffer& out) const {
    std::size_t const d = geometry_.head_dim, first = index * page_tokens;
    for (std::size_t token = 0; token < std::min(page_tokens, k.rows - first); ++token)
      for (std::size_t channel = 0; channel < d; ++channel) {
        out.k[token * d + channel] = to_float(k(first + token, kv_head * d + channel));
        out.v[token * d + channel] = to_float(v(first + token, kv_head * d + channel));
      }
  }

  page_geometry geometry_;
  page_decoder<row_major_layout<S>> pages_;
  std::size_t kv_heads_;
};

}  // namespace kvquant::cpu::generic
