#pragma once
/// \file
/// A page: 64 consecutive tokens of one layer and one KV head, of fixed size and never changed once sealed.
///
/// It holds the codes of keys and values, a range per token for the values, and the slots: the elements whose residual
/// against the dense reconstruction weighs most, `x = x̂ + residual`. How the bytes lie is the backend's choice (its
/// `page_layout`); the canonical page is what all of them convert to and from, exactly.

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/quantize/affine.hpp"
#include "kvquant/quantize/outlier.hpp"
#include "kvquant/quantize/spec.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant {

/// Tokens of a page.
inline constexpr std::size_t page_tokens = 64;
/// What a page's size is a multiple of, and where it starts: a line of the machine's memory.
inline constexpr std::size_t page_alignment = 64;

/// What can be packed: codes of at most 8 bits, or binary16 numbers as they are (`passthrough`).
template <class F>
concept PackedFormat = Format<F> && std::bool_constant<(F::scaled ? F::bits <= 8 : F::bits == 16)>::value;

/// Keys and values are both scaled, or neither.
template <class S>
concept PackedSpec = Spec<S> && PackedFormat<typename S::key_format> && PackedFormat<typename S::value_format> &&
    std::bool_constant<(S::key_format::scaled == S::value_format::scaled)>::value;

/// The sizes of a page's parts. Keys and values have `elements()` codes each, row-major [page_tokens, head_dim].
struct page_geometry {
  std::size_t head_dim = 0;    ///< a multiple of 16, up to 256
  int k_bits = 0, v_bits = 0;  ///< per code; 16 on both sides: values as they are, without ranges and slots
  /// Sparse elements, each an `outlier` whose index is token · head_dim + channel.
  std::size_t k_slots = 0, v_slots = 0;
  /// Bits of a token's codes where channels have widths of their own; 0: every code has `k_bits`, `v_bits`. Values that
  /// have widths of their own have no ranges by token.
  std::size_t k_token_bits = 0, v_token_bits = 0;
  /// [head_dim] of the head at hand: the width of each channel's codes. Null where they are all alike, and where no
  /// head is meant.
  std::uint8_t const *k_widths = nullptr, *v_widths = nullptr;
  /// [head_dim] of the same head: which of the side's tables each channel has.
  std::uint16_t const *k_tables = nullptr, *v_tables = nullptr;
  /// Which channels RoPE turns together, for layouts that keep them side by side.
  rope_pairing pairing = rope_pairing::half_split;
  std::size_t rotary_dim = 0;  ///< channels that are turned, the first ones of a head
  friend bool operator==(page_geometry const&, page_geometry const&) = default;

  /// Whether it holds binary16 numbers as they are.
  bool is_exact() const { return k_bits == 16 && v_bits == 16; }
  /// Codes of one side.
  std::size_t elements() const { return page_tokens * head_dim; }
  /// Of a page's keys.
  std::size_t k_code_bytes() const { return code_bytes(k_bits, k_token_bits); }
  /// Of a page's values.
  std::size_t v_code_bytes() const { return code_bytes(v_bits, v_token_bits); }
  /// Of the values' lower and upper bounds, binary16 each.
  std::size_t range_bytes() const { return is_exact() || v_token_bits > 0 ? 0 : page_tokens * sizeof(value_range); }
  /// Of both sides.
  std::size_t slot_bytes() const { return (k_slots + v_slots) * sizeof(outlier); }
  /// Of all parts, before the last line is filled.
  std::size_t used_bytes() const { return k_code_bytes() + v_code_bytes() + range_bytes() + slot_bytes(); }
  /// A multiple of `page_alignment`.
  std::size_t page_bytes() const { return (used_bytes() + page_alignment - 1) / page_alignment * page_alignment; }

 private:
  std::size_t code_bytes(int bits, std::size_t token_bits) const {
    return page_tokens / 8 * (token_bits > 0 ? token_bits : head_dim * static_cast<std::size_t>(bits));
  }
};

/// round(fraction · elements) slots a side; what is left of the last line becomes slots too, for the sides that have
/// any and need more. Codes of 16 bits have no slots. `token_bits`: of a token's codes, keys and values, 0 where their
/// width is `k_bits`, `v_bits`. Throws `bad_shape` for a head_dim that is no multiple of 16 or above 256, `bad_value`
/// for fractions outside [0, 1) and for fewer or more `token_bits` than `head_dim` codes of 1 to `k_bits`, `v_bits` can
/// have.
inline page_geometry make_page_geometry(int head_dim, int k_bits, int v_bits, double fraction_k, double fraction_v,
                                        std::array<int, 2> token_bits = {}) {
  require(head_dim >= 16 && head_dim <= 256 && head_dim % 16 == 0, errc::bad_shape, "page: head_dim is ", head_dim,
          ", expected a multiple of 16 up to 256");
  page_geometry it{.head_dim = static_cast<std::size_t>(head_dim), .k_bits = k_bits, .v_bits = v_bits};
  for (int const bits : {k_bits, v_bits})
    require(it.is_exact() || (bits >= 1 && bits <= 8), errc::bad_value, "page: codes of ", bits,
            " bits, expected 1 to 8, or 16 on both sides");
  auto const per_token = [&](int bits, int widest) {
    require(bits == 0 || (bits >= head_dim && bits <= head_dim * widest), errc::bad_value, "page: ", bits,
            " bits for a token's codes, expected ", head_dim, " to ", head_dim * widest);
    return static_cast<std::size_t>(bits);
  };
  it.k_token_bits = per_token(token_bits[0], k_bits);
  it.v_token_bits = per_token(token_bits[1], v_bits);
  auto const slots = [&](double fraction) {
    require(fraction >= 0 && fraction < 1, errc::bad_value, "page: outlier fraction ", fraction, ", expected [0, 1)");
    return it.is_exact() ? 0 : static_cast<std::size_t>(std::llround(fraction * static_cast<double>(it.elements())));
  };
  it.k_slots = slots(fraction_k);
  it.v_slots = slots(fraction_v);
  std::size_t const spare = (it.page_bytes() - it.used_bytes()) / sizeof(outlier);
  std::size_t const to_keys = it.k_slots == 0 ? 0 : it.v_slots == 0 ? spare : (spare + 1) / 2;
  if (it.v_slots > 0) it.v_slots = std::min(it.elements(), it.v_slots + spare - to_keys);
  it.k_slots = std::min(it.elements(), it.k_slots + to_keys);
  return it;
}

/// The geometry of the pages that an artifact describes.
template <PackedSpec S>
page_geometry geometry_for(artifact_info const& info) {
  auto it = make_page_geometry(info.shape.head_dim, S::key_format::bits, S::value_format::bits, info.outlier_fraction_k,
                               info.outlier_fraction_v, {info.key_token_bits, info.value_token_bits});
  it.pairing = info.shape.rope.pairing;
  it.rotary_dim = static_cast<std::size_t>(rope(info.shape.rope, info.shape.head_dim).rotary_dim());
  return it;
}

/// Of the geometry's head.
inline channel_pair pair_of(page_geometry const& geometry, std::size_t pair) {
  return pair_of(geometry.pairing, geometry.rotary_dim, pair);
}

/// How many of a sequence's `tokens` are in pages: whole ones behind the sinks, but for the `recent_pages` latest.
inline std::size_t sealed_tokens(std::size_t tokens, std::size_t sinks, std::size_t recent_pages) {
  std::size_t const filled = (tokens - std::min(tokens, sinks)) / page_tokens;
  return (filled - std::min(filled, recent_pages)) * page_tokens;
}

/// One page as anyone may read it.
template <PackedSpec S>
struct canonical_page {
  ///@{
  /// Of one code.
  using key_code = typename S::key_format::code_type;
  using value_code = typename S::value_format::code_type;
  ///@}

  std::vector<key_code> k_codes;                    ///< [page_tokens, head_dim]
  std::vector<value_code> v_codes;                  ///< [page_tokens, head_dim]
  std::array<value_range, page_tokens> v_ranges{};  ///< zeros where the geometry has none
  std::vector<outlier> k_slots, v_slots;            ///< [slots of the geometry], by rising index, each index once

  /// Without room.
  canonical_page() = default;
  /// With room for a page of that geometry.
  explicit canonical_page(page_geometry const& geometry) { resize(geometry); }
  /// Makes room for a page of that geometry.
  void resize(page_geometry const& geometry) {
    k_codes.resize(geometry.elements());
    v_codes.resize(geometry.elements());
    k_slots.resize(geometry.k_slots);
    v_slots.resize(geometry.v_slots);
  }
  /// Whether they read the same, element by element.
  friend bool operator==(canonical_page const& a, canonical_page const& b) {
    auto const same = [](std::span<outlier const> x, std::span<outlier const> y) {
      return std::equal(x.begin(), x.end(), y.begin(), y.end(),
                        [](outlier p, outlier q) { return p.index == q.index && p.residual == q.residual; });
    };
    auto const same_range = [](value_range p, value_range q) { return p.lower == q.lower && p.upper == q.upper; };
    return a.k_codes == b.k_codes && a.v_codes == b.v_codes &&
           std::equal(a.v_ranges.begin(), a.v_ranges.end(), b.v_ranges.begin(), same_range) &&
           same(a.k_slots, b.k_slots) && same(a.v_slots, b.v_slots);
  }
};

/// How a backend wants a page's bytes: `L::write` fills all `L::page_bytes` bytes from a canonical page, `L::read`
/// gives exactly that page back, in a page that has been resized to the geometry. `L::sealer`, if there is one, is a
/// quicker way to the bytes of new pages (`layout_sealer.hpp`); `L::memory()`, if there is one, is where pages have to
/// lie to be read by their backend.
template <class L>
concept PageLayout = PackedSpec<typename L::spec_type> &&
    requires(page_geometry const& geometry, canonical_page<typename L::spec_type> const& page,
             canonical_page<typename L::spec_type>& out, std::span<std::byte> bytes, std::span<std::byte const> read) {
  { L::name } -> std::convertible_to<std::string_view>;
  { L::page_bytes(geometry) } -> std::same_as<std::size_t>;
  L::write(geometry, page, bytes);
  L::read(geometry, read, out);
};

}  // namespace kvquant
