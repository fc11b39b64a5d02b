#pragma once
/// \file
/// What the kernels read beside pages whose channels have widths of their own, made on the host.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "backends/cuda/fragment_layout.hpp"
#include "backends/cuda/tables.hpp"
#include "backends/cuda/width_offsets.hpp"
#include "backends/cuda/width_order.hpp"
#include "kvquant/cache/chunk_levels.hpp"
#include "kvquant/cache/page_sealer.hpp"

namespace kvquant::cuda {

/// One side of one head. A level read as a byte u is scale · u + zero, with u = `level_origin` + multiple of a step.
template <Format F>
class head_levels {
 public:
  /// `channel_at(place)`: of the head; `first`: the head's first channel of the side.
  template <class ChannelAt>
  head_levels(channel_side<F> const& side, std::size_t first, channel_order const& order, std::size_t head_dim,
              int limit, ChannelAt&& channel_at)
      : levels_(side, order, head_dim, limit, level_origin,
                [&](std::size_t place) { return first + channel_at(place); }),
        maps_(head_dim) {
    double largest_step = 0;
    for (std::size_t place = 0; place < head_dim; ++place) {
      affine const map = side.map(first + channel_at(place));
      double const step = double{map.scale} * levels_.steps[place / chunk_channels];
      maps_[channel_at(place)] = {static_cast<float>(step), static_cast<float>(map.zero - level_origin * step)};
      largest_step = std::max(largest_step, step);
    }
    // Scales of bytes that are read as steps of 2^-24 must not leave binary16 either.
    unit_ = std::max(unit_for(largest_read(side, first, head_dim)),
                     largest_step > 0
                         ? static_cast<float>(std::exp2(std::ceil(std::log2(largest_step / byte_step / 65504))))
                         : 0.0f);
  }

  float unit() const { return unit_; }
  /// Of a channel of the head, over the unit, of bytes in `byte_step`.
  affine map(std::size_t channel) const {
    return {static_cast<float>(maps_[channel].scale / byte_step / unit_), maps_[channel].zero / unit_};
  }
  value_correction correction(std::size_t channel) const {
    affine const exact = map(channel);
    double const scale = to_float(to_half(exact.scale)), zero = to_float(to_half(exact.zero));
    double const factor = scale > 0 ? exact.scale / scale : 1;
    return {static_cast<float>(factor), static_cast<float>((exact.zero - factor * zero) * unit_)};
  }
  /// [chunks of the plan, 16], by place.
  void write(quartet_plan const& plan, std::byte* to) const {
    for (std::size_t const chunk : plan.chunks) {
      std::memcpy(to, levels_.entries[chunk].data(), 16);
      to += 16;
    }
  }

 private:
  chunk_levels levels_;
  std::vector<affine> maps_;  // [head_dim]
  float unit_ = 1;
};

/// See `width_offsets::value_maps`. `map(channel of the head)`.
template <class Map>
std::vector<four_words> value_maps_of(head_widths const& places, std::size_t head_dim, Map&& map) {
  std::vector<four_words> out;
  for (std::size_t fragment = 0; fragment < head_dim / 16; ++fragment)
    for (std::size_t g = 0; g < 8; ++g) {
      affine const a = map(places.channel_at[fragment * 16 + g]), b = map(places.channel_at[fragment * 16 + 8 + g]);
      out.push_back({both_halves(a.scale, a.scale), both_halves(a.zero, a.zero), both_halves(b.scale, b.scale),
                     both_halves(b.zero, b.zero)});
    }
  return out;
}

/// Of formats that are `by_channel`. Throws `unsupported` for levels of a channel's own.
template <PackedSpec S>
host_tables width_tables_of(artifact<S> const& it, int layer, page_geometry const& of_model) {
  page_sealer<S> const quantizers(it, layer, of_model);
  std::size_t const d = of_model.head_dim;
  width_offsets const at(static_cast<int>(d));
  auto const size = static_cast<std::size_t>(at.end);
  host_tables out;
  for (std::size_t head = 0; head * d < quantizers.keys().channels(); ++head) {
    page_geometry const geometry = quantizers.geometry(head);
    width_order const order(geometry);
    head_levels const keys(quantizers.keys(), head * d, order.keys, d, key_grid_limit, [&](std::size_t place) {
      channel_pair const pair = pair_of(geometry, order.keys.at[place / 2]);
      return static_cast<std::size_t>(place % 2 == 0 ? pair.first : pair.second);
    });
    head_levels const values(quantizers.values(), head * d, order.values, d, value_grid_limit,
                             [&](std::size_t place) { return std::size_t{order.values.at[place]}; });
    append_key_maps(
        geometry, [&](std::size_t channel) { return keys.map(channel); },
        [&](std::size_t place) { return std::size_t{order.places.pair_at[place]}; }, out.key_maps);
    out.key_units.push_back(keys.unit());
    out.value_units.push_back(values.unit());

    std::vector<std::byte> table(size);
    auto const put = [&](int offset, auto const* from, std::size_t bytes) {
      std::memcpy(table.data() + offset, from, bytes);
    };
    put(0, order.places.quartets, sizeof order.places.quartets);
    keys.write(order.k, table.data() + at.k_levels);
    values.write(order.v, table.data() + at.v_levels);
    auto const maps = value_maps_of(order.places, d, [&](std::size_t channel) { return values.map(channel); });
    put(at.value_maps, maps.data(), maps.size() * sizeof(four_words));
    std::vector<value_correction> corrections;
    for (std::size_t place = 0; place < d; ++place)
      corrections.push_back(values.correction(order.places.channel_at[place]));
    put(at.corrections, corrections.data(), d * sizeof(value_correction));
    put(at.pair_at, order.places.pair_at, d / 2);
    put(at.channel_at, order.places.channel_at, d);
    out.levels.resize(out.levels.size() + size / sizeof(std::uint32_t));
    std::memcpy(out.levels.data() + out.levels.size() - size / sizeof(std::uint32_t), table.data(), size);
  }
  return out;
}

}  // namespace kvquant::cuda
