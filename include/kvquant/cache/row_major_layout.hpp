#pragma once
/// \file
/// The canonical page in exactly its bits: what files hold, and what portable backends read.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "kvquant/cache/page.hpp"
#include "kvquant/pack/bit_pack.hpp"

namespace kvquant {

/// Key codes, value codes (each a stream of `pack`, or of `pack_columns` where channels have widths of their own),
/// value ranges, key slots, value slots, zeros to the end of the line. Numbers are little-endian, as the machine's are.
template <PackedSpec S>
struct row_major_layout {
  /// Formats of keys and values.
  using spec_type = S;
  /// As reports call it.
  static constexpr std::string_view name = "row_major";

  /// The parts of a page's bytes.
  template <class Byte>
  struct parts {
    std::span<Byte> k_codes, v_codes, v_ranges, k_slots, v_slots, padding;  ///< in the order in which they lie

    /// Throws `bad_shape` unless `page` has as many bytes as the geometry says.
    parts(page_geometry const& geometry, std::span<Byte> page) {
      require(page.size() == page_bytes(geometry), errc::bad_shape, "page: ", page.size(), " bytes, expected ",
              page_bytes(geometry));
      std::size_t at = 0;
      auto const next = [&](std::size_t bytes) { return page.subspan(std::exchange(at, at + bytes), bytes); };
      k_codes = next(geometry.k_code_bytes());
      v_codes = next(geometry.v_code_bytes());
      v_ranges = next(geometry.range_bytes());
      k_slots = next(geometry.k_slots * sizeof(outlier));
      v_slots = next(geometry.v_slots * sizeof(outlier));
      padding = page.subspan(at);
    }
  };

  ///@{
  /// As `PageLayout` asks.
  static std::size_t page_bytes(page_geometry const& geometry) { return geometry.page_bytes(); }

  static void write(page_geometry const& geometry, canonical_page<S> const& page, std::span<std::byte> bytes) {
    parts<std::byte> const to(geometry, bytes);
    write_codes<typename S::key_format>(page.k_codes, widths_of(geometry, geometry.k_widths), to.k_codes);
    write_codes<typename S::value_format>(page.v_codes, widths_of(geometry, geometry.v_widths), to.v_codes);
    copy(std::as_bytes(std::span(page.v_ranges)).first(geometry.range_bytes()), to.v_ranges);
    copy(std::as_bytes(std::span(page.k_slots)), to.k_slots);
    copy(std::as_bytes(std::span(page.v_slots)), to.v_slots);
    std::fill(to.padding.begin(), to.padding.end(), std::byte{0});
  }

  static void read(page_geometry const& geometry, std::span<std::byte const> bytes, canonical_page<S>& page) {
    parts<std::byte const> const from(geometry, bytes);
    read_codes<typename S::key_format>(from.k_codes, widths_of(geometry, geometry.k_widths), page.k_codes);
    read_codes<typename S::value_format>(from.v_codes, widths_of(geometry, geometry.v_widths), page.v_codes);
    copy(from.v_ranges, std::as_writable_bytes(std::span(page.v_ranges)).first(geometry.range_bytes()));
    copy(from.k_slots, std::as_writable_bytes(std::span(page.k_slots)));
    copy(from.v_slots, std::as_writable_bytes(std::span(page.v_slots)));
  }
  ///@}

 private:
  using widths = std::span<std::uint8_t const>;  // [head_dim], or empty

  static widths widths_of(page_geometry const& geometry, std::uint8_t const* of_head) {
    return {of_head, of_head == nullptr ? 0 : geometry.head_dim};
  }
  template <Format F>
  static void write_codes(std::span<typename F::code_type const> codes, widths by_channel, std::span<std::byte> to) {
    if constexpr (is_by_channel<F>)
      pack_columns(codes, by_channel, to);
    else
      pack<F::bits>(codes, to);
  }
  template <Format F>
  static void read_codes(std::span<std::byte const> from, widths by_channel, std::span<typename F::code_type> codes) {
    if constexpr (is_by_channel<F>)
      unpack_columns(from, by_channel, codes);
    else
      unpack<F::bits>(from, codes);
  }
  static void copy(std::span<std::byte const> from, std::span<std::byte> to) {
    require(from.size() == to.size(), errc::bad_shape, "page: a part of ", from.size(), " bytes, expected ", to.size());
    if (!to.empty()) std::memcpy(to.data(), from.data(), to.size());
  }
};

}  // namespace kvquant
