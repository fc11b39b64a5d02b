#pragma once
/// \file
/// Seals pages by whatever instructions the machine has, and says how the CPU's pages lie.

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
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
concept QuadSpec = PackedSpec<S> && QuadWidth<S::key_format::bits> && QuadWidth<S::value_format::bits>;

/// What the kernels can seal: codes are found by the boundaries of levels.
template <class F>
concept LevelFormat = std::same_as<typename F::table, level_table<F::bits>>;
template <class S>
concept SealedSpec = QuadSpec<S> && LevelFormat<typename S::key_format> && LevelFormat<typename S::value_format>;

namespace detail {

template <Format F, class Side>
side_tables tables_for_sealing(Side const& side, std::span<value_range const> seen) {
  side_tables out;
  if constexpr (is_by_channel<F>) {
    out.own_levels.resize(side.channels() / lanes);
    for (std::size_t channel = 0; channel < side.channels(); ++channel)
      out.own_levels[channel / lanes].set(channel % lanes, side.table(channel));
  } else {
    out.levels.set(side.table());
  }
  if constexpr (requires { side.map(0); })
    for (std::size_t channel = 0; channel < side.channels(); ++channel) {
      out.scales.push_back(side.map(channel).scale);
      out.zeros.push_back(side.map(channel).zero);
    }
  for (value_range const it : seen) {
    out.seen_least.push_back(it.low());
    out.seen_most.push_back(it.high());
  }
  return out;
}

}  // namespace detail

/// The quantizers of one layer. Where the machine has no kernels the definition serves.
template <SealedSpec S>
class sealer {
 public:
  using layout = quad_layout<S>;
  using key_format = typename S::key_format;
  using value_format = typename S::value_format;
  struct worker {
    typename layout_sealer<layout>::worker plain;
    sealing_scratch scratch;
  };

  sealer(artifact<S> const& it, int layer, page_geometry const& geometry)
      : sealer(it, layer, geometry, available_isas().empty() ? std::nullopt : std::optional(chosen_isa())) {}
  sealer(artifact<S> const& it, int layer, page_geometry const& geometry, std::optional<isa> which)
      : geometry_(geometry), definition_(it, layer, geometry), rank_(rank_of_values(quantizers().values())) {
    if (!which) return;
    kernels_ = with_kernels<sealing_kernels>(*which, []<class Kernels>(Kernels) {
      return Kernels::template sealing<kernel_bits<key_format>, kernel_bits<value_format>>();
    });
    k_tables_ = detail::tables_for_sealing<key_format>(quantizers().keys(), quantizers().key_seen());
    v_tables_ = detail::tables_for_sealing<value_format>(quantizers().values(), quantizers().value_seen());
  }

  page_sealer<S> const& quantizers() const { return definition_.quantizers(); }
  std::size_t table_bytes() const { return definition_.table_bytes() + k_tables_.bytes() + v_tables_.bytes(); }
  worker make_worker() const {
    return {definition_.make_worker(), {geometry_.head_dim, quantizers().keys().channels()}};
  }

  value_range range_of(std::span<half const> token, worker& mine) const {
    return kernels_ && has_ranges ? kernels_->range_of(token, rank_, mine.scratch)
                                  : definition_.range_of(token, mine.plain);
  }

  static clamp_counts& clamps(worker& mine) { return mine.plain.clamps; }

  void seal(head_tokens const& tokens, std::span<std::byte> bytes, worker& mine) const {
    if (!kernels_) return definition_.seal(tokens, bytes, mine.plain);
    page_geometry const geometry = quantizers().geometry(tokens.head);
    canonical_page<S>& page = mine.plain.page;
    if (tokens.reused > 0) layout::read(geometry, tokens.before, page);
    std::copy(tokens.ranges.begin(), tokens.ranges.end(),
              page.v_ranges.begin() + static_cast<std::ptrdiff_t>(tokens.reused));
    clamp_counts& clamps = mine.plain.clamps;
    page_side const keys = keys_of(tokens, page);
    kernels_->seal_keys(keys, mine.scratch);
    count_clamped(keys, clamps.keys, clamps.clamped_keys);
    token_maps of_tokens;
    page_side const values = values_of(tokens, page, of_tokens);
    kernels_->seal_values(values, mine.scratch);
    count_clamped(values, clamps.values, clamps.clamped_values);
    layout::write(geometry, page, bytes);
  }

 private:
  static constexpr bool has_ranges = !is_by_channel<value_format>;
  struct token_maps {
    std::array<float, page_tokens> scales, zeros;
  };

  /// Of the values that end a token's range.
  template <class Side>
  static std::size_t rank_of_values(Side const& values) {
    if constexpr (has_ranges) return values.make_selector().smallest().size() + 1;
    return 0;
  }

  std::size_t first_channel(head_tokens const& it) const { return it.head * geometry_.head_dim; }
  /// The head's part of what every channel has.
  template <class T>
  std::span<T const> of_head(head_tokens const& it, std::span<T const> all) const {
    return all.subspan(first_channel(it), geometry_.head_dim);
  }
  view2d<half const> of_head(head_tokens const& it, view2d<half const> all) const {
    return all.middle_rows(0, page_tokens - it.reused).middle_cols(first_channel(it), geometry_.head_dim);
  }

  page_side keys_of(head_tokens const& it, canonical_page<S>& page) const {
    return {.tokens = of_head(it, it.k),
            .first_channel = first_channel(it),
            .scales = k_tables_.scales.data() + first_channel(it),
            .zeros = k_tables_.zeros.data() + first_channel(it),
            .sensitivity = of_head(it, quantizers().key_sensitivity()),
            .tables = k_tables_,
            .codes = page.k_codes,
            .slots = page.k_slots};
  }
  /// `maps`: room for those of tokens.
  page_side values_of(head_tokens const& it, canonical_page<S>& page, token_maps& maps) const {
    page_side side{.tokens = of_head(it, it.v),
                   .first_channel = first_channel(it),
                   .scales = maps.scales.data(),
                   .zeros = maps.zeros.data(),
                   .sensitivity = of_head(it, quantizers().value_sensitivity()),
                   .tables = v_tables_,
                   .codes = page.v_codes,
                   .slots = page.v_slots};
    if constexpr (!has_ranges) {
      side.scales = v_tables_.scales.data() + first_channel(it);
      side.zeros = v_tables_.zeros.data() + first_channel(it);
    } else {
      for (std::size_t token = 0; token < it.ranges.size(); ++token) {
        affine const map = affine_of(it.ranges[token]);
        maps.scales[token] = map.scale;
        maps.zeros[token] = map.zero;
      }
    }
    return side;
  }
  void count_clamped(page_side const& side, std::uint64_t& all, std::uint64_t& clamped) const {
    if (side.tables.seen_least.empty()) return;
    all += side.tokens.rows * side.head_dim();
    clamped += kernels_->count_clamped(side);
  }

  page_geometry geometry_;
  layout_sealer<layout> definition_;
  side_tables k_tables_, v_tables_;
  std::size_t rank_;
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
