#pragma once
/// \file
/// Pages as floats.

#include <cstddef>
#include <span>

#include "kvquant/cache/page.hpp"
#include "kvquant/cache/page_sealer.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant::cpu {

/// Decodes pages of one layer that lie as `Layout` says.
template <PageLayout Layout>
class page_decoder {
 public:
  using spec_type = typename Layout::spec_type;

  page_decoder(artifact<spec_type> const& it, int layer, page_geometry const& geometry)
      : quantizers_(it, layer, geometry) {}

  /// `k`, `v`: [page_tokens, head_dim], residuals added. `page`: scratch.
  void decode(std::span<std::byte const> bytes, std::size_t kv_head, canonical_page<spec_type>& page, float* k,
              float* v) const {
    page_geometry const geometry = quantizers_.geometry(kv_head);
    std::size_t const d = geometry.head_dim;
    page.resize(geometry);
    Layout::read(geometry, bytes, page);
    for (std::size_t token = 0; token < page_tokens; ++token) {
      affine const value_map = affine_of(page.v_ranges[token]);
      for (std::size_t channel = 0; channel < d; ++channel) {
        std::size_t const at = token * d + channel;
        k[at] = quantizers_.keys().decode(kv_head * d + channel, page.k_codes[at]);
        v[at] = quantizers_.values().decode(kv_head * d + channel, value_map, page.v_codes[at]);
      }
    }
    for (outlier const it : page.k_slots) k[it.index] += to_float(it.residual);
    for (outlier const it : page.v_slots) v[it.index] += to_float(it.residual);
  }

 private:
  page_sealer<spec_type> quantizers_;
};

}  // namespace kvquant::cpu
