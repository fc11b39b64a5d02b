#pragma once
/// \file
/// Pages of any content that a page may have.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "kvquant/cache/page.hpp"
#include "test/support/page_widths.hpp"

namespace kvquant::test {

template <Spec S>
canonical_page<S> random_page(page_geometry const& geometry, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto const bits = [&] { return static_cast<std::uint16_t>(random()); };
  canonical_page<S> page(geometry);
  fill_codes(page.k_codes, geometry.k_bits, geometry.k_widths, geometry.head_dim, random);
  fill_codes(page.v_codes, geometry.v_bits, geometry.v_widths, geometry.head_dim, random);
  for (value_range& range : std::span(page.v_ranges).first(geometry.range_bytes() / sizeof(value_range)))
    range = {{bits()}, {bits()}};
  std::vector<std::uint16_t> indices(geometry.elements());
  std::iota(indices.begin(), indices.end(), std::uint16_t{0});
  for (auto* const slots : {&page.k_slots, &page.v_slots}) {
    std::shuffle(indices.begin(), indices.end(), random);
    std::sort(indices.begin(), indices.begin() + static_cast<std::ptrdiff_t>(slots->size()));
    for (std::size_t i = 0; i < slots->size(); ++i) (*slots)[i] = {indices[i], {bits()}};
  }
  return page;
}

}  // namespace kvquant::test
