#pragma once
/// \file
/// Geometries of pages by format, and codes that fit them.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kvquant/cache/page.hpp"
#include "test/support/hand_made_artifact.hpp"

namespace kvquant::test {

/// A geometry and, for formats that are `by_channel`, the widths of one head that it points to.
template <PackedSpec S>
struct sized_page {
  std::vector<std::uint8_t> k_widths, v_widths;
  std::vector<std::uint16_t> k_tables, v_tables;  ///< one for each width
  page_geometry geometry;

  sized_page(int head_dim, double fraction_k, double fraction_v, rope_pairing pairing = rope_pairing::half_split,
             int rotary_dim = 0) {
    std::mt19937_64 random(7);
    auto const d = static_cast<std::size_t>(head_dim), rotary = static_cast<std::size_t>(rotary_dim);
    if (is_by_channel<typename S::key_format>) k_widths = shuffled_key_widths(d, pairing, rotary, random);
    if (is_by_channel<typename S::value_format>) v_widths = shuffled_widths(d, 1, random);
    auto const bits = [](std::vector<std::uint8_t> const& widths) {
      return std::accumulate(widths.begin(), widths.end(), 0);
    };
    geometry = make_page_geometry(head_dim, S::key_format::bits, S::value_format::bits, fraction_k, fraction_v,
                                  {bits(k_widths), bits(v_widths)});
    geometry.pairing = pairing;
    geometry.rotary_dim = rotary;
    k_tables.assign(k_widths.begin(), k_widths.end());
    v_tables.assign(v_widths.begin(), v_widths.end());
    if (!k_widths.empty()) {
      geometry.k_widths = k_widths.data();
      geometry.k_tables = k_tables.data();
    }
    if (!v_widths.empty()) {
      geometry.v_widths = v_widths.data();
      geometry.v_tables = v_tables.data();
    }
  }
  sized_page(sized_page const&) = delete;
  sized_page& operator=(sized_page const&) = delete;
};

/// Any codes of a page's side, [page_tokens, head_dim]. `widths` [head_dim], or null: all have `bits`.
template <class Code>
void fill_codes(std::vector<Code>& codes, int bits, std::uint8_t const* widths, std::size_t head_dim,
                std::mt19937_64& random) {
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<Code>(random() % (1u << (widths == nullptr ? bits : widths[i % head_dim])));
}

}  // namespace kvquant::test
