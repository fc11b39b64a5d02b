#pragma once
/// \file
/// A page layout in which everything lies elsewhere than in the canonical page: what does not depend on the layout must
/// not notice.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kvquant/cache/page.hpp"
#include "kvquant/pack/bit_pack.hpp"

namespace kvquant::test {

/// Value slots and key slots, each by channel and then by token; upper bounds of the values' ranges, then lower ones;
/// value codes and key codes, channel by channel; the rest, a line more than needed, is ones.
template <Spec S>
struct column_major_layout {
  using spec_type = S;
  static constexpr std::string_view name = "column_major";

  static std::size_t page_bytes(page_geometry const& geometry) { return geometry.page_bytes() + page_alignment; }

  static void write(page_geometry const& geometry, canonical_page<S> const& page, std::span<std::byte> to) {
    std::size_t const d = geometry.head_dim;
    auto const put = [&]<class T>(std::vector<T> const& from) {
      auto const raw = std::as_bytes(std::span(from));
      to = to.subspan(static_cast<std::size_t>(std::copy(raw.begin(), raw.end(), to.begin()) - to.begin()));
    };
    put(by_channel(page.v_slots, d));
    put(by_channel(page.k_slots, d));
    std::vector<half> bounds;
    auto const ranges = std::span(page.v_ranges).first(geometry.range_bytes() / sizeof(value_range));
    for (value_range const it : ranges) bounds.push_back(it.upper);
    for (value_range const it : ranges) bounds.push_back(it.lower);
    put(bounds);
    std::vector<std::byte> packed(geometry.v_code_bytes());
    pack<S::value_format::bits>(transposed(page.v_codes, page_tokens, d), packed);
    put(packed);
    packed.resize(geometry.k_code_bytes());
    pack<S::key_format::bits>(transposed(page.k_codes, page_tokens, d), packed);
    put(packed);
    std::fill(to.begin(), to.end(), std::byte{0xff});
  }

  static void read(page_geometry const& geometry, std::span<std::byte const> from, canonical_page<S>& page) {
    std::size_t const d = geometry.head_dim;
    auto const take = [&](std::size_t count) { return std::exchange(from, from.subspan(count)).first(count); };
    for (auto* const slots : {&page.v_slots, &page.k_slots}) {
      auto const raw = take(slots->size() * sizeof(outlier));
      if (!raw.empty()) std::memcpy(slots->data(), raw.data(), raw.size());
      std::sort(slots->begin(), slots->end(), [](outlier a, outlier b) { return a.index < b.index; });
    }
    std::size_t const ranges = geometry.range_bytes() / sizeof(value_range);
    std::vector<half> bounds(2 * ranges);
    auto const raw_bounds = take(geometry.range_bytes());
    if (!bounds.empty()) std::memcpy(bounds.data(), raw_bounds.data(), raw_bounds.size());
    for (std::size_t token = 0; token < ranges; ++token) page.v_ranges[token] = {bounds[ranges + token], bounds[token]};
    unpack<S::value_format::bits>(take(geometry.v_code_bytes()), page.v_codes);
    page.v_codes = transposed(page.v_codes, d, page_tokens);
    unpack<S::key_format::bits>(take(geometry.k_code_bytes()), page.k_codes);
    page.k_codes = transposed(page.k_codes, d, page_tokens);
  }

 private:
  static std::vector<outlier> by_channel(std::vector<outlier> slots, std::size_t d) {
    std::stable_sort(slots.begin(), slots.end(), [d](outlier a, outlier b) { return a.index % d < b.index % d; });
    return slots;
  }
  /// Of a matrix [rows, cols].
  template <class Code>
  static std::vector<Code> transposed(std::vector<Code> const& codes, std::size_t rows, std::size_t cols) {
    std::vector<Code> out(codes.size());
    for (std::size_t row = 0; row < rows; ++row)
      for (std::size_t col = 0; col < cols; ++col) out[col * rows + row] = codes[row * cols + col];
    return out;
  }
};

}  // namespace kvquant::test
