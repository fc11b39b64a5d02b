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

namespace kvquant::test {

template <Spec S>
canonical_page<S> random_page(page_geometry const& geometry, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  auto const bits = [&] { return static_cast<std::uint16_t>(random()); };
  canonical_page<S> page(geometry);
  for (auto& code : page.k_codes)
    code = static_cast<typename S::key_format::code_type>(random() % (1u << geometry.k_bits));
  for (auto& code : page.v_codes)
    code = static_cast<typename S::value_format::code_type>(random() % (1u << geometry.v_bits));
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
