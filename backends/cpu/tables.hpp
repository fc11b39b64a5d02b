#pragma once
/// \file
/// What kernels read beside pages, all of it constant: angles, and what a code means.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "backends/cpu/aligned.hpp"
#include "backends/cpu/quad_layout.hpp"
#include "kvquant/cache/chunk_levels.hpp"
#include "kvquant/quantize/sides.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant::cpu {

/// Channels are met in pairs (`pair_of`), pairs by sixteen; arrays over pairs are padded with zeros to whole vectors.
inline constexpr std::size_t lanes = 16, largest_pairs = largest_head_dim / 2;

inline std::size_t padded(std::size_t pairs) { return (pairs + lanes - 1) / lanes * lanes; }

/// How a vector of pairs is read from a row of channels.
enum class pair_access {
  halves,      ///< firsts side by side, seconds half a head further
  neighbours,  ///< first and second alternate
  gathered     ///< anything else: one by one
};

inline pair_access access_of(page_geometry const& geometry) {
  if (geometry.head_dim % (2 * lanes) != 0) return pair_access::gathered;
  if (geometry.pairing == rope_pairing::interleaved || geometry.rotary_dim == 0) return pair_access::neighbours;
  return geometry.rotary_dim == geometry.head_dim ? pair_access::halves : pair_access::gathered;
}

/// The angles within a page in 16 bits: two pairs' side by side, in the order of a head's codes.
struct pair_angles {
  line_vector<std::uint32_t> cos, sin;  ///< [pairs / 2, page_tokens] of 2 pairs, the first in the lower half

  explicit pair_angles(std::size_t pairs) : cos(pairs / 2 * page_tokens), sin(cos) {}
};

/// The angles within a page, attention factor apart: those of every page, query and head. Pairs that RoPE leaves alone
/// have the angle 0.
struct rotation_tables {
  /// cos and sin in 16 bits are `unit16` times as large.
  static constexpr int unit16 = 2047;
  /// Those of slots: two products of such numbers stay in 32 bits.
  static constexpr int slot_unit16 = 32767;

  std::size_t pairs, turned;              ///< of a head; those that RoPE turns
  line_vector<float> cos, sin;            ///< [page_tokens, padded(pairs)]
  line_vector<float> step_cos, step_sin;  ///< [padded(pairs)] of page_tokens
  line_vector<std::int16_t> by_slot;      ///< [pairs, page_tokens, {cos, sin}]
  line_vector<std::uint32_t> by_pair16;   ///< [pairs, page_tokens] cos in the lower half, sin in the higher
  pair_angles angles16;                   ///< of pairs in their own order
  float factor;                           ///< attention factor

  rotation_tables(rope const& rotation, page_geometry const& geometry)
      : pairs(geometry.head_dim / 2),
        turned(geometry.rotary_dim / 2),
        cos(page_tokens * padded(pairs), 1),
        sin(page_tokens * padded(pairs), 0),
        step_cos(padded(pairs), 1),
        step_sin(padded(pairs), 0),
        by_slot(pairs * page_tokens * 2),
        by_pair16(pairs * page_tokens),
        angles16(pairs),
        factor(static_cast<float>(rotation.attention_factor())) {
    auto const table = rotation.angle_table<double>(0, page_tokens + 1);
    for (std::size_t token = 0; token <= page_tokens; ++token)
      for (std::size_t pair = 0; pair < pairs; ++pair) {
        bool const turns = pair < turned;
        double const c = turns ? table[token].cos[pair] / rotation.attention_factor() : 1;
        double const s = turns ? table[token].sin[pair] / rotation.attention_factor() : 0;
        set(token, pair, c, s);
      }
  }

 private:
  void set(std::size_t token, std::size_t pair, double c, double s) {
    auto const as_float = [](double x) { return static_cast<float>(x); };
    if (token == page_tokens) {
      step_cos[pair] = as_float(c);
      step_sin[pair] = as_float(s);
      return;
    }
    cos[token * padded(pairs) + pair] = as_float(c);
    sin[token * padded(pairs) + pair] = as_float(s);
    std::size_t const by_slot_at = (pair * page_tokens + token) * 2;
    by_slot[by_slot_at] = as_int16(c * slot_unit16);
    by_slot[by_slot_at + 1] = as_int16(s * slot_unit16);
    auto const half_word = [](std::int16_t x) { return std::uint32_t{static_cast<std::uint16_t>(x)}; };
    std::uint32_t const cos16 = half_word(as_int16(c * unit16)), sin16 = half_word(as_int16(s * unit16));
    by_pair16[pair * page_tokens + token] = cos16 | sin16 << 16;
    angles16.cos[pair / 2 * page_tokens + token] |= cos16 << pair % 2 * 16;
    angles16.sin[pair / 2 * page_tokens + token] |= sin16 << pair % 2 * 16;
  }

  static std::int16_t as_int16(double x) { return static_cast<std::int16_t>(std::lround(x)); }
};

/// Keys are read as 7-bit numbers around it.
inline constexpr int key_origin = 64;

inline constexpr float largest_entry8 = 127, largest_int16 = 32000, smallest_unit = 1e-30f;

/// The keys of one KV head of one layer: k = scale · (u − key_origin) + zero, u = key_origin + multiple. Pairs are in
/// the order of the codes, `order.at`.
struct key_head {
  channel_order order;
  chunk_levels levels;
  line_vector<float> scale_a, scale_b, zero_a, zero_b;  ///< [padded(pairs)], of the first and the second of a pair
  /// [padded(pairs)]: in these units no scale leaves 8 bits and no turned key 16.
  line_vector<float> unit;

  /// `geometry`: of the head.
  template <Format F>
  key_head(key_side<F> const& keys, std::size_t head, page_geometry const& geometry)
      : order(key_order(geometry)),
        levels(keys, order, geometry.head_dim, key_grid_limit, key_origin,
               [&](std::size_t place) {
                 channel_pair const pair = pair_of(geometry, order.at[place / 2]);
                 return head * geometry.head_dim + (place % 2 == 0 ? pair.first : pair.second);
               }),
        scale_a(padded(geometry.head_dim / 2), 0),
        scale_b(scale_a),
        zero_a(scale_a),
        zero_b(scale_a),
        unit(scale_a) {
    for (std::size_t place = 0; place < geometry.head_dim / 2; ++place) {
      auto const [first, second] = pair_of(geometry, order.at[place]);
      affine const a = keys.map(head * geometry.head_dim + first), b = keys.map(head * geometry.head_dim + second);
      float const step = levels.steps[2 * place / chunk_channels];
      scale_a[place] = a.scale * step;
      scale_b[place] = b.scale * step;
      zero_a[place] = a.zero;
      zero_b[place] = b.zero;
      float const longest = std::hypot(key_grid_limit * scale_a[place] + std::fabs(a.zero),
                                       key_grid_limit * scale_b[place] + std::fabs(b.zero));
      unit[place] = std::max(
          {smallest_unit, scale_a[place] / largest_entry8, scale_b[place] / largest_entry8, longest / largest_int16});
    }
  }
};

/// The values of one KV head of one layer: Σ p v = scale · Σ p s · multiple + zero · Σ p z, by place, where s and z are
/// a token's, or 1.
struct value_head {
  channel_order order;
  chunk_levels levels;
  line_vector<float> scale, zero;  ///< [head_dim]

  /// `values`: the side that quantizes them; `geometry`: of the head.
  template <class Side>
  value_head(Side const& values, std::size_t head, page_geometry const& geometry)
      : order(value_order(geometry)),
        levels(values, order, geometry.head_dim, value_grid_limit, 0,
               [&](std::size_t place) { return head * geometry.head_dim + order.at[place]; }),
        scale(geometry.head_dim),
        zero(geometry.head_dim) {
    constexpr affine of_token{1, 1};
    for (std::size_t place = 0; place < geometry.head_dim; ++place) {
      affine const map = values.map(head * geometry.head_dim + order.at[place], of_token);
      scale[place] = map.scale * levels.steps[place / chunk_channels];
      zero[place] = map.zero;
    }
  }
};

/// For keys that are turned in 16 bits: entries of both keys of a pair into each of its turned keys, by token,
/// in the head's units.
struct key_turns {
  line_vector<std::int8_t> a, b;                 ///< [pairs / 2, page_tokens, 2 pairs, {first, second}]
  line_vector<std::int16_t> a_offset, b_offset;  ///< [pairs / 2, page_tokens, 2 pairs]

  void resize(std::size_t pairs) {
    for (auto* it : {&a, &b}) it->resize(pairs * page_tokens * 2);
    for (auto* it : {&a_offset, &b_offset}) it->resize(pairs * page_tokens);
  }
};

}  // namespace kvquant::cpu
