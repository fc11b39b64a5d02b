#pragma once
/// \file
/// How pages lie for tensor cores: each lane's part of every fragment side by side (see `slab_shape.hpp`).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "backends/cuda/fragment_order.hpp"
#include "backends/cuda/memory.hpp"
#include "backends/cuda/page_offsets.hpp"
#include "backends/cuda/slab_shape.hpp"
#include "backends/cuda/width_order.hpp"
#include "kvquant/cache/page.hpp"

namespace kvquant::cuda {

/// What the kernels read: as many bits for keys as for values, 2 to 4 or binary16; or widths by channel on both sides.
template <class S>
concept FragmentSpec = PackedSpec<S> &&
                           S::key_format::bits == S::value_format::bits&& is_by_channel<typename S::key_format> ==
                           is_by_channel<typename S::value_format> &&
                       (S::key_format::bits == 16 || (S::key_format::bits >= 2 && S::key_format::bits <= 4));

/// As `attend_config::bits`.
template <FragmentSpec S>
inline constexpr int code_bits_of = is_by_channel<typename S::key_format> ? by_width : S::key_format::bits;

/// Where channels have widths of their own they lie by those: see `head_channels::widths`.
inline head_channels channels_of(page_geometry const& geometry) {
  return {static_cast<int>(geometry.rotary_dim / 2), geometry.pairing == rope_pairing::half_split};
}

template <FragmentSpec S>
struct fragment_layout {
  using spec_type = S;
  static constexpr std::string_view name = "fragment";
  static constexpr int bits = code_bits_of<S>;

  static std::pmr::memory_resource* memory() { return managed_memory(); }

  static fragment_offsets offsets(page_geometry const& geometry) { return offsets_of(geometry, bits); }
  static std::size_t page_bytes(page_geometry const& geometry) { return page_bytes_of(geometry, bits); }

  static void write(page_geometry const& geometry, canonical_page<S> const& page, std::span<std::byte> bytes) {
    check(geometry, bytes.size());
    fragment_offsets const at = offsets(geometry);
    head_order const order(geometry);
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    for_each_lane(geometry, order, [&](lane_codes<bits> const& it) {
      std::byte* const to = bytes.data() + static_cast<std::size_t>(it.slab) * at.slab_bytes;
      it.write(
          [&](bool is_key, int element) {
            return static_cast<std::uint32_t>(is_key ? page.k_codes[static_cast<std::size_t>(element)]
                                                     : page.v_codes[static_cast<std::size_t>(element)]);
          },
          [&](int offset, auto word) { std::memcpy(to + offset, &word, sizeof word); });
    });
    if constexpr (has_ranges)
      for (std::size_t slab = 0; slab < slabs_per_page; ++slab)
        std::memcpy(bytes.data() + slab * at.slab_bytes + at.slab_ranges, page.v_ranges.data() + slab * slab_tokens,
                    slab_tokens * sizeof(value_range));
    if (geometry.slot_bytes() > 0) write_slots(geometry, order, page, at, bytes.data());
  }

  static void read(page_geometry const& geometry, std::span<std::byte const> bytes, canonical_page<S>& page) {
    check(geometry, bytes.size());
    fragment_offsets const at = offsets(geometry);
    head_order const order(geometry);
    for_each_lane(geometry, order, [&](lane_codes<bits> const& it) {
      std::byte const* const from = bytes.data() + static_cast<std::size_t>(it.slab) * at.slab_bytes;
      it.read(
          [&](int offset) {
            std::conditional_t<bits == by_width, std::uint16_t, std::uint32_t> word;
            std::memcpy(&word, from + offset, sizeof word);
            return word;
          },
          [&](bool is_key, int element, std::uint64_t code) {
            if (is_key)
              page.k_codes[static_cast<std::size_t>(element)] = static_cast<typename canonical_page<S>::key_code>(code);
            else
              page.v_codes[static_cast<std::size_t>(element)] =
                  static_cast<typename canonical_page<S>::value_code>(code);
          });
    });
    if constexpr (has_ranges)
      for (std::size_t slab = 0; slab < slabs_per_page; ++slab)
        std::memcpy(page.v_ranges.data() + slab * slab_tokens, bytes.data() + slab * at.slab_bytes + at.slab_ranges,
                    slab_tokens * sizeof(value_range));
    if (geometry.slot_bytes() > 0) read_slots(geometry, order, at, bytes.data(), page);
  }

 private:
  static constexpr bool has_ranges = S::key_format::scaled && bits != by_width;

  /// The order of a head's channels, for as long as one page is written or read.
  struct head_order {
    std::optional<width_order> widths;
    head_channels channels;

    explicit head_order(page_geometry const& geometry) : channels(channels_of(geometry)) {
      if constexpr (bits == by_width) channels.widths = &widths.emplace(geometry).places;
    }
    head_order(head_order const&) = delete;
    head_order& operator=(head_order const&) = delete;
  };

  static void check(page_geometry const& geometry, std::size_t bytes) {
    require(bytes == page_bytes(geometry), errc::bad_shape, "page: ", bytes, " bytes, expected ", page_bytes(geometry));
  }

  template <class F>
  static void for_each_lane(page_geometry const& geometry, head_order const& order, F&& f) {
    for (int slab = 0; slab < slabs_per_page; ++slab)
      for (int lane = 0; lane < warp_lanes; ++lane)
        f(lane_codes<bits>{order.channels, static_cast<int>(geometry.head_dim), slab, lane});
  }

  static void write_slots(page_geometry const& geometry, head_order const& order, canonical_page<S> const& page,
                          fragment_offsets const& at, std::byte* to) {
    int const head_dim = static_cast<int>(geometry.head_dim);
    std::size_t k_done = 0, v_done = 0;
    for (int slab = 0; slab < slabs_per_page; ++slab) {
      slot_runs it{};
      it.k = write_side(page.k_slots, head_dim, slab, k_done, to + at.k_slots,
                        [&](int element) { return key_place(order.channels, head_dim, element); });
      it.v = write_side(page.v_slots, head_dim, slab, v_done, to + at.v_slots,
                        [&](int element) { return value_place(order.channels, head_dim, element); });
      std::memcpy(to + static_cast<std::size_t>(slab) * at.slab_bytes + at.slab_slots, &it, sizeof it);
    }
  }
  /// One slab's, from the `next`-th on, which becomes the next slab's first.
  template <class Place>
  static slot_run write_side(std::vector<outlier> const& all, int head_dim, int slab, std::size_t& next, std::byte* to,
                             Place&& place) {
    std::size_t const first = next;
    for (outlier const it : all) {
      if (it.index / head_dim / slab_tokens != slab) continue;
      fragment_slot const slot{place(it.index), it.residual.bits};
      std::memcpy(to + next++ * sizeof slot, &slot, sizeof slot);
    }
    return {static_cast<std::uint16_t>(first * sizeof(fragment_slot)), static_cast<std::uint16_t>(next - first)};
  }

  static void read_slots(page_geometry const& geometry, head_order const& order, fragment_offsets const& at,
                         std::byte const* from, canonical_page<S>& page) {
    int const head_dim = static_cast<int>(geometry.head_dim);
    for (int slab = 0; slab < slabs_per_page; ++slab) {
      slot_runs it;
      std::memcpy(&it, from + static_cast<std::size_t>(slab) * at.slab_bytes + at.slab_slots, sizeof it);
      read_side(page.k_slots, from + at.k_slots, it.k,
                [&](int place) { return key_element_at(order.channels, head_dim, slab, place); });
      read_side(page.v_slots, from + at.v_slots, it.v,
                [&](int place) { return value_element_at(order.channels, head_dim, slab, place); });
    }
    for (auto* const slots : {&page.k_slots, &page.v_slots})
      std::sort(slots->begin(), slots->end(), [](outlier a, outlier b) { return a.index < b.index; });
  }
  template <class Element>
  static void read_side(std::vector<outlier>& to, std::byte const* from, slot_run run, Element&& element) {
    std::size_t const first = run.offset / sizeof(fragment_slot);
    for (std::size_t i = first; i < std::min(first + run.count, to.size()); ++i) {
      fragment_slot it;
      std::memcpy(&it, from + i * sizeof it, sizeof it);
      to[i] = {static_cast<std::uint16_t>(element(it.place)), half{it.residual}};
    }
  }
};

}  // namespace kvquant::cuda
