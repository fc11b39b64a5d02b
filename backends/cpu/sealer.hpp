#pragma once
/// \file
/// Seals pages by whatever instructions the machine has, and says how the CPU's pages lie.

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "backends/cpu/isa.hpp"
#include "backends/cpu/kernel/sealing.hpp"
#include "backends/cpu/quad_layout.hpp"
#include "backends/cpu/with_kernels.hpp"
#include "kvquant/cache/layout_sealer.hpp"
#include "kvquant/cache/row_major_layout.hpp"

namespace kvquant::cpu {

template <class S>
concept QuadSpec = PackedSpec<S> && QuadWidth<S::key_format::bits> && QuadWidth<S::value_format::bits> &&
                   !is_by_channel<typename S::key_format> &&
                   !is_by_channel<typename S::value_format>;

/// What the kernels can seal: codes are found by the boundaries of levels.
template <class F>
concept LevelFormat = std::same_as<typename F::table, level_table<F::bits>>;
template <class S>
concept SealedSpec = QuadSpec<S> && LevelFormat<typename S::key_format> && LevelFormat<typename S::value_format>;

/// The quantizers of one layer. Where the machine has no kernels the definition serves.
template <SealedSpec S>
class sealer {
 public:
  using layout = quad_layout<S>;
  struct worker {
    typename layout_sealer<layout>::worker plain;
    sealing_scratch scratch;
  };

  sealer(artifact<S> const& it, int layer, page_geometry const& geometry)
      : sealer(it, layer, geometry, available_isas().empty() ? std::nullopt : std::optional(chosen_isa())) {}
  sealer(artifact<S> const& it, int layer, page_geometry const& geometry, std::optional<isa> which)
      : geometry_(geometry),
        definition_(it, layer, geometry),
        k_levels_(quantizers().keys().table()),
        v_levels_(quantizers().values().table()),
        rank_(quantizers().values().make_selector().smallest().size() + 1) {
    if (which)
      kernels_ = with_kernels<sealing_kernels>(*which, []<class Kernels>(Kernels) {
        return Kernels::template sealing<S::key_format::bits, S::value_format::bits>();
      });
    for (std::size_t channel = 0; channel < quantizers().keys().channels(); ++channel) {
      k_scales_.push_back(quantizers().keys().map(channel).scale);
      k_zeros_.push_back(quantizers().keys().map(channel).zero);
    }
  }

  page_sealer<S> const& quantizers() const { return definition_.quantizers(); }
  std::size_t table_bytes() const {
    return definition_.table_bytes() + 2 * sizeof(level_search_tables) +
           (k_scales_.size() + k_zeros_.size()) * sizeof(float);
  }
  worker make_worker() const { return {definition_.make_worker(), {geometry_.head_dim, k_scales_.size()}}; }

  value_range range_of(std::span<half const> token, worker& mine) const {
    return kernels_ ? kernels_->range_of(token, rank_, mine.scratch) : definition_.range_of(token, mine.plain);
  }

  static clamp_counts& clamps(worker& mine) { return mine.plain.clamps; }

  void seal(head_tokens const& tokens, std::span<std::byte> bytes, worker& mine) const {
    if (!kernels_) return definition_.seal(tokens, bytes, mine.plain);
    canonical_page<S>& page = mine.plain.page;
    if (tokens.reused > 0) layout::read(geometry_, tokens.before, page);
    std::copy(tokens.ranges.begin(), tokens.ranges.end(),
              page.v_ranges.begin() + static_cast<std::ptrdiff_t>(tokens.reused));
    seal_keys(tokens, page, mine.scratch);
    seal_values(tokens, page, mine.scratch);
    layout::write(geometry_, page, bytes);
  }

 private:
  /// The head's part of what every channel has.
  template <class T>
  std::span<T const> of_head(head_tokens const& it, std::span<T const> all) const {
    return all.subspan(it.head * geometry_.head_dim, geometry_.head_dim);
  }
  view2d<half const> of_head(head_tokens const& it, view2d<half const> all) const {
    return all.middle_rows(0, page_tokens - it.reused).middle_cols(it.head * geometry_.head_dim, geometry_.head_dim);
  }

  void seal_keys(head_tokens const& it, canonical_page<S>& page, sealing_scratch& scratch) const {
    kernels_->seal_keys({.tokens = of_head(it, it.k),
                         .scales = of_head<float>(it, k_scales_).data(),
                         .zeros = of_head<float>(it, k_zeros_).data(),
                         .sensitivity = of_head(it, quantizers().key_sensitivity()),
                         .levels = k_levels_,
                         .codes = page.k_codes,
                         .slots = page.k_slots},
                        scratch);
  }
  void seal_values(head_tokens const& it, canonical_page<S>& page, sealing_scratch& scratch) const {
    std::array<float, page_tokens> scales, zeros;
    for (std::size_t token = 0; token < it.ranges.size(); ++token) {
      affine const map = affine_of(it.ranges[token]);
      scales[token] = map.scale;
      zeros[token] = map.zero;
    }
    kernels_->seal_values({.tokens = of_head(it, it.v),
                           .scales = scales.data(),
                           .zeros = zeros.data(),
                           .sensitivity = of_head(it, quantizers().value_sensitivity()),
                           .levels = v_levels_,
                           .codes = page.v_codes,
                           .slots = page.v_slots},
                          scratch);
  }

  page_geometry geometry_;
  layout_sealer<layout> definition_;
  level_search_tables k_levels_, v_levels_;
  std::vector<float> k_scales_, k_zeros_;  // [kv_channels]
  std::size_t rank_;                       // of the values that end a token's range
  std::optional<sealing_kernels> kernels_;
};

namespace detail {
template <SealedSpec S>
struct sealed_quad_layout : quad_layout<S> {
  using sealer = cpu::sealer<S>;
};

template <class S>
struct layout_for {
  using type = row_major_layout<S>;
};
template <QuadSpec S>
struct layout_for<S> {
  using type = quad_layout<S>;
};
template <SealedSpec S>
struct layout_for<S> {
  using type = sealed_quad_layout<S>;
};
}  // namespace detail

/// How the pages of a spec lie, and who seals them.
template <PackedSpec S>
using page_layout = typename detail::layout_for<S>::type;

}  // namespace kvquant::cpu
