#pragma once
/// \file
/// How keys and values become codes, in device memory: what `seal_params` point to.

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "backends/cuda/fragment_layout.hpp"
#include "backends/cuda/kernel/seal_params.hpp"
#include "backends/cuda/memory.hpp"
#include "backends/cuda/width_order.hpp"
#include "kvquant/cache/page_sealer.hpp"

namespace kvquant::cuda {

template <Format F>
std::vector<affine> maps_of(channel_side<F> const& side) {
  std::vector<affine> maps;
  for (std::size_t channel = 0; channel < side.channels(); ++channel) maps.push_back(side.map(channel));
  return maps;
}

/// Of formats whose channels share a table.
template <FragmentSpec S>
class uniform_quantizers {
 public:
  uniform_quantizers(page_sealer<S> const& of, std::size_t)
      : key_maps_(maps_of(of.keys())),
        per_side_(static_cast<std::uint32_t>(of.values().make_selector().smallest().size())) {
    if constexpr (S::key_format::scaled) levels_ = {of.keys().table(), of.values().table()};
  }

  /// Outliers at each end of a token's values.
  std::uint32_t per_side() const { return per_side_; }
  std::size_t bytes() const { return key_maps_.bytes(); }
  void fill(seal_params<code_bits_of<S>>& to) const {
    to.levels = levels_;
    to.key_maps = key_maps_.data();
  }

 private:
  seal_levels<code_bits_of<S>> levels_{};
  device_array<affine> key_maps_;
  std::uint32_t per_side_;
};

/// Of one side of formats that are `by_channel`.
class channel_arrays {
 public:
  /// `seen`: by calibration, or empty.
  template <Format F>
  channel_arrays(channel_side<F> const& side, std::span<value_range const> seen)
      : maps_(maps_of(side)), tables_(side.tables()), table_of_(side.table_of()) {
    std::vector<seen_range> bounds;
    for (value_range const it : seen) bounds.push_back({it.low(), it.high()});
    seen_ = device_array<seen_range>(bounds);
  }
  std::size_t bytes() const { return maps_.bytes() + tables_.bytes() + table_of_.bytes() + seen_.bytes(); }
  /// Nothing is counted yet.
  channel_quantizers pointers() const {
    return {maps_.data(), tables_.data(), table_of_.data(), seen_.size() > 0 ? seen_.data() : nullptr, nullptr};
  }

 private:
  device_array<affine> maps_;
  device_array<level_table<4>> tables_;
  device_array<std::uint16_t> table_of_;
  device_array<seen_range> seen_;
};

template <FragmentSpec S>
class width_quantizers {
 public:
  width_quantizers(page_sealer<S> const& of, std::size_t kv_heads)
      : k_(of.keys(), of.key_seen()), v_(of.values(), of.value_seen()) {
    std::vector<head_widths> heads;
    for (std::size_t head = 0; head < kv_heads; ++head) heads.push_back(width_order(of.geometry(head)).places);
    widths_ = device_array<head_widths>(heads);
  }
  std::size_t bytes() const { return k_.bytes() + v_.bytes() + widths_.bytes(); }
  void fill(seal_params<by_width>& to) const {
    to.levels = {k_.pointers(), v_.pointers()};
    to.channels.widths = widths_.data();
  }

 private:
  channel_arrays k_, v_;
  device_array<head_widths> widths_;  // [kv_heads]
};

template <FragmentSpec S>
using device_quantizers = std::conditional_t<code_bits_of<S> == by_width, width_quantizers<S>, uniform_quantizers<S>>;

}  // namespace kvquant::cuda
