#pragma once
/// \file
/// What the kernels read beside pages, made on the host: angles, and what a code means.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "backends/cuda/fragment_layout.hpp"
#include "backends/cuda/kernel/params.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/quantize/sides.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant::cuda {

inline std::uint32_t both_halves(double low, double high) {
  return to_half(static_cast<float>(low)).bits | static_cast<std::uint32_t>(to_half(static_cast<float>(high)).bits)
                                                     << 16;
}

/// Turns by `step` · i tokens, without the attention factor: [count, pairs of the head].
inline std::vector<turn> make_turns(rope const& rotation, std::size_t pairs, std::size_t first, std::size_t count,
                                    std::size_t step) {
  std::vector<turn> out(count * pairs, turn{1, 0});
  std::size_t const turned = rotation.inverse_frequencies().size();
  std::vector<double> cos(turned), sin(turned);
  for (std::size_t i = 0; i < count && turned > 0; ++i) {
    rotation.angles_at<double>(static_cast<std::int64_t>((first + i) * step), cos, sin);
    for (std::size_t pair = 0; pair < turned; ++pair)
      out[i * pairs + pair] = {static_cast<float>(cos[pair] / rotation.attention_factor()),
                               static_cast<float>(sin[pair] / rotation.attention_factor())};
  }
  return out;
}

/// Halves of cosine and sine by which keys are turned within a page, with the attention factor.
class page_angles {
 public:
  page_angles(rope const& rotation, std::size_t pairs)
      : turned_(rotation.inverse_frequencies().size()),
        pairs_(pairs),
        table_(rotation.angle_table<double>(0, page_tokens)) {}

  double cos(std::size_t token, std::size_t pair) const { return pair < turned_ ? table_[token].cos[pair] / 2 : 0.5; }
  double sin(std::size_t token, std::size_t pair) const { return pair < turned_ ? table_[token].sin[pair] / 2 : 0; }

  /// In the order of fragments: see `model_tables::key_angles`.
  std::vector<four_words> by_fragment() const {
    std::vector<four_words> out;
    for (std::size_t slab = 0; slab < slabs_per_page; ++slab)
      for (std::size_t fragment = 0; fragment < pairs_ / 8; ++fragment)
        for (std::size_t lane = 0; lane < warp_lanes; ++lane) {
          std::size_t const token = slab * slab_tokens + lane / 4, pair = fragment * 8 + lane % 4 * 2;
          auto const cosines = [&](std::size_t t) { return both_halves(cos(t, pair), cos(t, pair + 1)); };
          auto const sines = [&](std::size_t t) { return both_halves(sin(t, pair), sin(t, pair + 1)); };
          out.push_back({cosines(token), sines(token), cosines(token + 8), sines(token + 8)});
        }
    return out;
  }

 private:
  std::size_t turned_, pairs_;
  rope_angle_table<double> table_;
};

template <Format F>
std::uint32_t level_bits(typename F::table const& table, std::size_t code) {
  return to_half(F::decode(table, static_cast<typename F::code_type>(code))).bits;
}

/// Pairs of levels by eight bits of two 4-bit codes.
template <Format F>
void append_level_pairs(typename F::table const& table, std::vector<std::uint32_t>& out) {
  for (std::size_t codes = 0; codes < 256; ++codes)
    out.push_back(level_bits<F>(table, codes % 16) | level_bits<F>(table, codes / 16) << 16);
}
/// The low bytes of eight levels, then their high bytes.
template <Format F>
void append_level_bytes(typename F::table const& table, std::vector<std::uint32_t>& out) {
  for (unsigned shift = 0; shift < 16; shift += 8)
    for (std::size_t first = 0; first < 8; first += 4) {
      std::uint32_t four = 0;
      for (std::size_t i = 0; i < 4; ++i) {
        std::size_t const code = (first + i) % (std::size_t{1} << F::bits);
        four |= (level_bits<F>(table, code) >> shift & 0xffu) << 8 * i;
      }
      out.push_back(four);
    }
}

/// What codes of keys and values mean, as the kernels look it up: see `layer_tables::levels`.
template <Format K, Format V>
std::vector<std::uint32_t> make_levels(typename K::table const& keys, typename V::table const& values) {
  std::vector<std::uint32_t> out;
  if constexpr (K::bits == 4) {
    append_level_pairs<K>(keys, out);
    append_level_pairs<V>(values, out);
  } else {
    for (int lane = 0; lane < warp_lanes; ++lane) append_level_bytes<K>(keys, out);
    for (int lane = 0; lane < warp_lanes; ++lane) append_level_bytes<V>(values, out);
  }
  return out;
}

/// What one KV head's keys, or values, are divided by: a power of 2 that leaves `largest` at 64 at most, so that
/// binary16 holds residuals a thousand times as large.
inline float unit_for(double largest) {
  return largest > 0x1p-100 ? static_cast<float>(std::exp2(std::ceil(std::log2(largest)) - 6)) : 1.0f;
}
/// The largest size that one of the channels from `first` on can read as.
template <Format F>
double largest_read(channel_side<F> const& side, std::size_t first, std::size_t count) {
  double largest = 0;
  for (std::size_t channel = first; channel < first + count; ++channel) {
    double largest_level = 0;
    for (std::size_t code = 0; code < std::size_t{1} << F::bits; ++code)
      largest_level = std::max<double>(
          largest_level, std::fabs(F::decode(side.table(channel), static_cast<typename F::code_type>(code))));
    largest = std::max<double>(largest, side.map(channel).scale * largest_level + std::fabs(side.map(channel).zero));
  }
  return largest;
}

/// Scales and zeros of one KV head's keys: see `layer_tables::key_maps`. `map(channel of the head)`; `pair_at(place)`
/// are the head's pairs in their order.
template <class Map, class PairAt>
void append_key_maps(page_geometry const& geometry, Map&& map, PairAt&& pair_at, std::vector<four_words>& out) {
  for (std::size_t place = 0; place < geometry.head_dim / 2; place += 2) {
    channel_pair const a = pair_of(geometry, pair_at(place)), b = pair_of(geometry, pair_at(place + 1));
    out.push_back(
        {both_halves(map(a.first).scale, map(b.first).scale), both_halves(map(a.first).zero, map(b.first).zero),
         both_halves(map(a.second).scale, map(b.second).scale), both_halves(map(a.second).zero, map(b.second).zero)});
  }
}

/// `layer_tables` on the host.
struct host_tables {
  std::vector<std::uint32_t> levels;
  std::vector<four_words> key_maps;
  std::vector<float> key_units, value_units;
};

/// Of formats with one width and one table for all channels.
template <PackedSpec S>
host_tables tables_of_layer(artifact<S> const& it, int layer, page_geometry const& geometry) {
  auto const keys = it.keys(layer);
  host_tables out{make_levels<typename S::key_format, typename S::value_format>(keys.table(), it.values(layer).table()),
                  {},
                  {},
                  {}};
  for (std::size_t first = 0; first < keys.channels(); first += geometry.head_dim) {
    float const unit = unit_for(largest_read(keys, first, geometry.head_dim));
    out.key_units.push_back(unit);
    append_key_maps(
        geometry,
        [&](std::size_t channel) {
          affine const map = keys.map(first + channel);
          return affine{map.scale / unit, map.zero / unit};
        },
        [](std::size_t place) { return place; }, out.key_maps);
  }
  return out;
}

}  // namespace kvquant::cuda
