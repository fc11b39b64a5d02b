#pragma once
/// \file
/// What is asked of a page layout.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "kvquant/cache/page.hpp"
#include "test/support/page_widths.hpp"

namespace kvquant::contract {

/// Slots by rising index; the first and the last element of the page are among them.
inline void fill_slots(std::vector<outlier>& slots, std::size_t elements, std::mt19937_64& random) {
  for (std::size_t i = 0; i < slots.size(); ++i) {
    std::size_t const last = slots.size() - 1, index = i == 0 ? 0 : i * (elements - 1) / last;
    slots[i] = {static_cast<std::uint16_t>(index), half{static_cast<std::uint16_t>(random() % 0x7c00)}};
  }
}

template <PackedSpec S>
canonical_page<S> random_page(page_geometry const& geometry, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  canonical_page<S> page(geometry);
  test::fill_codes(page.k_codes, geometry.k_bits, geometry.k_widths, geometry.head_dim, random);
  test::fill_codes(page.v_codes, geometry.v_bits, geometry.v_widths, geometry.head_dim, random);
  for (value_range& range : std::span(page.v_ranges).first(geometry.range_bytes() / sizeof(value_range)))
    range = {half{static_cast<std::uint16_t>(random() % 0x7c00)}, half{static_cast<std::uint16_t>(random() % 0x7c00)}};
  fill_slots(page.k_slots, geometry.elements(), random);
  fill_slots(page.v_slots, geometry.elements(), random);
  return page;
}

/// A page comes back as it was, from bytes that depend on nothing but the page.
template <PageLayout Layout>
void check_layout(int head_dim, double outliers_k, double outliers_v) {
  using S = typename Layout::spec_type;
  test::sized_page<S> const sized(head_dim, outliers_k, outliers_v);
  page_geometry const& geometry = sized.geometry;
  std::size_t const size = Layout::page_bytes(geometry);
  REQUIRE(size % page_alignment == 0);
  REQUIRE(size >= geometry.used_bytes());
  auto const page = random_page<S>(geometry, 1);
  std::vector<std::byte> bytes(size, std::byte{0x55}), again(size, std::byte{0xaa});
  Layout::write(geometry, page, bytes);
  Layout::write(geometry, page, again);
  CHECK(bytes == again);
  auto out = random_page<S>(geometry, 2);
  REQUIRE_FALSE(out == page);
  Layout::read(geometry, bytes, out);
  CHECK(out == page);
}

}  // namespace kvquant::contract
