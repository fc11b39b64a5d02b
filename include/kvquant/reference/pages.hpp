#pragma once
/// \file
/// What a sealed page means: which elements it keeps, and what it reads as.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "kvquant/cache/page.hpp"
#include "kvquant/cache/sequence.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/reference/matrix.hpp"
#include "kvquant/reference/quantize.hpp"

namespace kvquant::reference {

/// Keys and values, [tokens, channels] each; keys before RoPE.
struct keys_and_values {
  matrix k, v;  ///< [tokens, channels]
};

/// One page of KV head `head`: [page_tokens, head_dim], residuals added.
template <PackedSpec S>
keys_and_values decode_page(canonical_page<S> const& page, artifact<S> const& it, int layer, int head) {
  Eigen::Index const d = it.info.shape.head_dim;
  using key_format = typename S::key_format;
  using value_format = typename S::value_format;
  auto const keys = it.keys(layer);
  auto const values = it.values(layer);
  keys_and_values out{matrix(Eigen::Index{page_tokens}, d), matrix(Eigen::Index{page_tokens}, d)};
  for (Eigen::Index t = 0; t < out.k.rows(); ++t)
    for (Eigen::Index c = 0; c < d; ++c) {
      auto const at = static_cast<std::size_t>(t * d + c);
      auto const channel = static_cast<std::size_t>(head * d + c);
      affine const k_map = keys.map(channel);
      affine const v_map = values.map(channel, affine_of(page.v_ranges[static_cast<std::size_t>(t)]));
      double const k_level = key_format::decode(keys.table(channel), page.k_codes[at]);
      double const v_level = value_format::decode(values.table(channel), page.v_codes[at]);
      out.k(t, c) = double{k_map.scale} * k_level + double{k_map.zero};
      out.v(t, c) = double{v_map.scale} * v_level + double{v_map.zero};
    }
  for (outlier const o : page.k_slots) out.k(o.index / d, o.index % d) += to_float(o.residual);
  for (outlier const o : page.v_slots) out.v(o.index / d, o.index % d) += to_float(o.residual);
  return out;
}

/// All that one layer of a sequence holds of KV head `head`, as attention should read it: [tokens, head_dim]. Tokens
/// whose pages were given back are zeros.
template <class Cache>
keys_and_values read_head(Cache const& cache, artifact<typename Cache::spec_type> const& it, sequence const& of,
                          int layer, int head) {
  layer_view const view = cache.view(of, layer);
  Eigen::Index const d = it.info.shape.head_dim;
  auto const tokens = static_cast<Eigen::Index>(view.tokens());
  keys_and_values out{matrix::Zero(tokens, d), matrix::Zero(tokens, d)};
  auto const copy_exact = [&](view2d<half const> rows, matrix& to, std::size_t first) {
    auto const mine = rows.middle_cols(static_cast<std::size_t>(head * d), static_cast<std::size_t>(d));
    for (std::size_t t = 0; t < mine.rows; ++t)
      for (std::size_t c = 0; c < mine.cols; ++c)
        to(static_cast<Eigen::Index>(first + t), static_cast<Eigen::Index>(c)) = to_float(mine(t, c));
  };
  std::size_t const sinks = view.sink_k.rows;
  copy_exact(view.sink_k, out.k, 0);
  copy_exact(view.sink_v, out.v, 0);
  copy_exact(view.tail_k, out.k, sinks + view.sealed);
  copy_exact(view.tail_v, out.v, sinks + view.sealed);
  canonical_page<typename Cache::spec_type> page;
  for (std::size_t index = view.gone; index < view.gone + view.pages.size(); ++index) {
    std::size_t const before = index * page_tokens;
    auto const first = static_cast<Eigen::Index>(sinks + before);
    auto const count = static_cast<Eigen::Index>(std::min(page_tokens, view.sealed - before));
    cache.read_page(of, layer, index, static_cast<std::size_t>(head), page);
    keys_and_values const values = decode_page(page, it, layer, head);
    out.k.middleRows(first, count) = values.k.topRows(count);
    out.v.middleRows(first, count) = values.v.topRows(count);
  }
  return out;
}

/// The same of all KV heads: [tokens, kv_channels].
template <class Cache>
keys_and_values read_layer(Cache const& cache, artifact<typename Cache::spec_type> const& it, sequence const& of,
                           int layer) {
  auto const tokens = static_cast<Eigen::Index>(cache.view(of, layer).tokens());
  Eigen::Index const d = it.info.shape.head_dim, channels = it.info.shape.kv_channels();
  keys_and_values out{matrix(tokens, channels), matrix(tokens, channels)};
  for (int head = 0; tokens > 0 && head < it.info.shape.kv_heads; ++head) {
    keys_and_values const mine = read_head(cache, it, of, layer, head);
    out.k.middleCols(head * d, d) = mine.k;
    out.v.middleCols(head * d, d) = mine.v;
  }
  return out;
}

/// Which elements of a page keep their residual: the `slots` with the largest sensitivity · residual², then the largest
/// |residual|, then the lowest index. `x`: the exact values of one head, `dense`: what their codes read as, both
/// [page_tokens, head_dim]; `sensitivity` [head_dim]. By rising index.
inline std::vector<outlier> select_slots(matrix const& x, matrix const& dense, std::vector<float> const& sensitivity,
                                         std::size_t slots) {
  std::vector<std::tuple<float, float, std::int64_t, outlier>>
      order;  // negated, so that sorting puts the largest first
  for (Eigen::Index index = 0; index < x.size(); ++index) {
    half const residual = residual_of(static_cast<float>(x.data()[index]), static_cast<float>(dense.data()[index]));
    float const r = to_float(residual), weight = sensitivity[static_cast<std::size_t>(index % x.cols())] * r * r;
    order.emplace_back(-weight, -std::abs(r), index, outlier{static_cast<std::uint16_t>(index), residual});
  }
  auto const before = [](auto const& a, auto const& b) {
    return std::tie(std::get<0>(a), std::get<1>(a), std::get<2>(a)) <
           std::tie(std::get<0>(b), std::get<1>(b), std::get<2>(b));
  };
  std::sort(order.begin(), order.end(), before);
  std::vector<outlier> kept;
  for (std::size_t i = 0; i < slots; ++i) kept.push_back(std::get<3>(order[i]));
  std::sort(kept.begin(), kept.end(), [](outlier a, outlier b) { return a.index < b.index; });
  return kept;
}

}  // namespace kvquant::reference
