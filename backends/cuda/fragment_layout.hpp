#pragma once
/// \file
/// How pages lie for tensor cores: each lane's part of every fragment side by side (see `slab_shape.hpp`).

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory_resource>
#include <span>
#include <string_view>
#include <vector>

#include "backends/cuda/fragment_order.hpp"
#include "backends/cuda/memory.hpp"
#include "backends/cuda/slab_shape.hpp"
#include "kvquant/cache/page.hpp"

namespace kvquant::cuda {

/// What the kernels read: as many bits for keys as for values, 2 to 4 or binary16.
template <class S>
concept FragmentSpec = PackedSpec<S> && S::key_format::bits == S::value_format::bits &&
                       (S::key_format::bits == 16 || (S::key_format::bits >= 2 && S::key_format::bits <= 4));

inline key_pairs pairs_of(page_geometry const& geometry) {
  return {static_cast<int>(geometry.rotary_dim / 2), geometry.pairing == rope_pairing::half_split};
}

template <FragmentSpec S>
struct fragment_layout {
  using spec_type = S;
  static constexpr std::string_view name = "fragment";
  static constexpr int bits = S::key_format::bits;

  static std::pmr::memory_resource* memory() { return managed_memory(); }

  static fragment_offsets offsets(page_geometry const& geometry) {
    return {bits, static_cast<int>(geometry.head_dim), geometry.k_slots, geometry.v_slots};
  }
  static std::size_t page_bytes(page_geometry const& geometry) {
    return (offsets(geometry).end + page_alignment - 1) / page_alignment * page_alignment;
  }

  static void write(page_geometry const& geometry, canonical_page<S> const& page, std::span<std::byte> bytes) {
    check(geometry, bytes.size());
    fragment_offsets const at = offsets(geometry);
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    for_each_lane(geometry, [&](lane_codes<bits> const& it) {
      std::byte* const to = bytes.data() + static_cast<std::size_t>(it.slab) * at.slab_bytes;
      it.write(
          [&](bool is_key, int element) {
            return static_cast<std::uint32_t>(is_key ? page.k_codes[static_cast<std::size_t>(element)]
                                                     : page.v_codes[static_cast<std::size_t>(element)]);
          },
          [&](int offset, std::uint32_t word) { std::memcpy(to + offset, &word, sizeof word); });
    });
    if constexpr (S::key_format::scaled)
      for (std::size_t slab = 0; slab < slabs_per_page; ++slab)
        std::memcpy(bytes.data() + slab * at.slab_bytes + at.slab_ranges, page.v_ranges.data() + slab * slab_tokens,
                    slab_tokens * sizeof(value_range));
    if (at.end > at.slot_bounds) write_slots(geometry, page, at, bytes.data());
  }

  static void read(page_geometry const& geometry, std::span<std::byte const> bytes, canonical_page<S>& page) {
    check(geometry, bytes.size());
    fragment_offsets const at = offsets(geometry);
    for_each_lane(geometry, [&](lane_codes<bits> const& it) {
      std::byte const* const from = bytes.data() + static_cast<std::size_t>(it.slab) * at.slab_bytes;
      it.read(
          [&](int offset) {
            std::uint32_t word;
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
    if constexpr (S::key_format::scaled)
      for (std::size_t slab = 0; slab < slabs_per_page; ++slab)
        std::memcpy(page.v_ranges.data() + slab * slab_tokens, bytes.data() + slab * at.slab_bytes + at.slab_ranges,
                    slab_tokens * sizeof(value_range));
    if (at.end > at.slot_bounds) read_slots(geometry, at, bytes.data(), page);
  }

 private:
  static void check(page_geometry const& geometry, std::size_t bytes) {
    require(bytes == page_bytes(geometry), errc::bad_shape, "page: ", bytes, " bytes, expected ", page_bytes(geometry));
  }

  template <class F>
  static void for_each_lane(page_geometry const& geometry, F&& f) {
    for (int slab = 0; slab < slabs_per_page; ++slab)
      for (int lane = 0; lane < warp_lanes; ++lane)
        f(lane_codes<bits>{pairs_of(geometry), static_cast<int>(geometry.head_dim), slab, lane});
  }

  static void write_slots(page_geometry const& geometry, canonical_page<S> const& page, fragment_offsets const& at,
                          std::byte* to) {
    std::array<slot_bounds, slabs_per_page> bounds{};
    std::size_t k_done = 0, v_done = 0;
    for (std::size_t slab = 0; slab < slabs_per_page; ++slab) {
      auto const k =
          named_slots(page.k_slots, geometry, slab, [&](int channel) { return pairs_of(geometry).member_of(channel); });
      auto const v = named_slots(page.v_slots, geometry, slab, [](int channel) { return channel; });
      bounds[slab] = {static_cast<std::uint16_t>(k_done), static_cast<std::uint16_t>(k_done + k.size()),
                      static_cast<std::uint16_t>(v_done), static_cast<std::uint16_t>(v_done + v.size())};
      copy(std::as_bytes(std::span(k)), to + at.k_slots + k_done * sizeof(fragment_slot));
      copy(std::as_bytes(std::span(v)), to + at.v_slots + v_done * sizeof(fragment_slot));
      k_done += k.size();
      v_done += v.size();
    }
    copy(std::as_bytes(std::span(bounds)), to + at.slot_bounds);
  }
  static void copy(std::span<std::byte const> from, std::byte* to) {
    if (!from.empty()) std::memcpy(to, from.data(), from.size());
  }

  /// The slots of one slab; `name(channel)`: what the kernel calls a channel.
  template <class Name>
  static std::vector<fragment_slot> named_slots(std::vector<outlier> const& all, page_geometry const& geometry,
                                                std::size_t slab, Name&& name) {
    std::vector<fragment_slot> out;
    for (outlier const it : all) {
      std::size_t const token = it.index / geometry.head_dim;
      if (token / slab_tokens == slab)
        out.push_back({place_of(static_cast<int>(token), name(static_cast<int>(it.index % geometry.head_dim))),
                       it.residual.bits});
    }
    return out;
  }

  static void read_slots(page_geometry const& geometry, fragment_offsets const& at, std::byte const* from,
                         canonical_page<S>& page) {
    std::array<slot_bounds, slabs_per_page> bounds;
    std::memcpy(bounds.data(), from + at.slot_bounds, sizeof bounds);
    for (std::size_t slab = 0; slab < slabs_per_page; ++slab) {
      read_side(page.k_slots, geometry, slab, from + at.k_slots, bounds[slab].k_first, bounds[slab].k_last,
                [&](int member) { return pairs_of(geometry).channel_of(member); });
      read_side(page.v_slots, geometry, slab, from + at.v_slots, bounds[slab].v_first, bounds[slab].v_last,
                [](int channel) { return channel; });
    }
    for (auto* const slots : {&page.k_slots, &page.v_slots})
      std::sort(slots->begin(), slots->end(), [](outlier a, outlier b) { return a.index < b.index; });
  }
  template <class Channel>
  static void read_side(std::vector<outlier>& to, page_geometry const& geometry, std::size_t slab,
                        std::byte const* from, std::size_t first, std::size_t last, Channel&& channel) {
    for (std::size_t i = first; i < std::min(last, to.size()); ++i) {
      fragment_slot it;
      std::memcpy(&it, from + i * sizeof it, sizeof it);
      std::size_t const token = slab * slab_tokens + static_cast<std::size_t>(it.token());
      to[i] = {static_cast<std::uint16_t>(token * geometry.head_dim + static_cast<std::size_t>(channel(it.channel()))),
               half{it.residual}};
    }
  }
};

}  // namespace kvquant::cuda
