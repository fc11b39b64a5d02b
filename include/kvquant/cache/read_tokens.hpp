#pragma once
/// \file
/// What a cache holds of some tokens, as numbers: for whoever has to have them beside attention, and for tests.

#include <algorithm>
#include <cstddef>

#include "kvquant/cache/kv_cache.hpp"

namespace kvquant {

namespace detail {

/// Rows of `exact`, which stand for tokens from `start` on, to those of `to`, which stand for tokens from `first` on.
inline void read_exact(view2d<half const> exact, std::size_t start, std::size_t first, view2d<float> to) {
  std::size_t const begin = std::max(start, first), end = std::min(start + exact.rows, first + to.rows);
  for (std::size_t token = begin; token < end; ++token)
    std::transform(exact.row(token - start).begin(), exact.row(token - start).end(), to.row(token - first).begin(),
                   [](half x) { return to_float(x); });
}

/// Tokens [begin, end) of a page of KV head `head` to the rows of `k` and `v` from `row` on.
template <class S>
void read_page_rows(page_sealer<S> const& layer, canonical_page<S> const& page, std::size_t head, std::size_t begin,
                    std::size_t end, std::size_t row, view2d<float> k, view2d<float> v) {
  std::size_t const d = page.k_codes.size() / page_tokens, first_channel = head * d;
  for (std::size_t token = begin; token < end; ++token) {
    affine const map = affine_of(page.v_ranges[token]);
    for (std::size_t channel = 0; channel < d; ++channel) {
      std::size_t const at = token * d + channel, to = first_channel + channel;
      k(row + token - begin, to) = layer.keys().decode(to, page.k_codes[at]);
      v(row + token - begin, to) = layer.values().decode(to, map, page.v_codes[at]);
    }
  }
  auto const add_residuals = [&](std::span<outlier const> slots, view2d<float> to) {
    for (outlier const it : slots)
      if (std::size_t const token = it.index / d; token >= begin && token < end)
        to(row + token - begin, first_channel + it.index % d) += to_float(it.residual);
  };
  add_residuals(page.k_slots, k);
  add_residuals(page.v_slots, v);
}

}  // namespace detail

/// Fills `k` (before RoPE) and `v`, [tokens, kv_channels] each, with what attention reads of the tokens from `first`
/// on, residuals added. Throws `bad_shape` for room of another size, `bad_value` for tokens that the layer has not, or
/// whose pages were given back.
template <class S, class Layout>
void read_tokens(kv_cache<S, Layout> const& cache, sequence const& of, int layer, std::size_t first, view2d<float> k,
                 view2d<float> v) {
  require(k.rows == v.rows && k.cols == cache.kv_channels() && v.cols == k.cols, errc::bad_shape, "read: keys ", k.rows,
          " x ", k.cols, ", values ", v.rows, " x ", v.cols, ", expected as many rows of ", cache.kv_channels());
  cache.wait();
  layer_view const view = cache.view(of, layer);
  require(first <= view.tokens() && k.rows <= view.tokens() - first, errc::bad_value, "read: ", k.rows, " tokens from ",
          first, " on, layer ", layer, " has ", view.tokens());
  std::size_t const sinks = view.sink_k.rows, last = first + k.rows;
  require(view.gone == 0 || first >= view.first_kept() || last <= sinks, errc::bad_value, "read: tokens ", first,
          " to ", last, ", those of layer ", layer, " from ", sinks, " to ", view.first_kept(),
          " lay behind its window and were given back");
  detail::read_exact(view.sink_k, 0, first, k);
  detail::read_exact(view.sink_v, 0, first, v);
  detail::read_exact(view.tail_k, sinks + view.sealed, first, k);
  detail::read_exact(view.tail_v, sinks + view.sealed, first, v);
  canonical_page<S> page;
  std::size_t const begin = std::max(first, sinks), end = std::min(last, sinks + view.sealed);
  for (std::size_t token = begin; token < end;) {
    std::size_t const index = (token - sinks) / page_tokens, start = sinks + index * page_tokens;
    std::size_t const stop = std::min(end, start + page_tokens);
    for (std::size_t head = 0; head < cache.kv_heads(); ++head) {
      cache.read_page(of, layer, index, head, page);
      detail::read_page_rows(cache.layer(layer), page, head, token - start, stop - start, token - first, k, v);
    }
    token = stop;
  }
}

}  // namespace kvquant
