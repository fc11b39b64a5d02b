#pragma once
/// \file
/// What every target shares: the tokens that are quantized, the bytes of a call, and the reference's word on a result.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/cache/page.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/reference/attention.hpp"
#include "kvquant/reference/pages.hpp"
#include "measure/choices.hpp"
#include "measure/job.hpp"

namespace kvquant::measure {

/// Pages that are quantized from tokens; all others repeat them.
inline constexpr std::size_t distinct_pages = 4;
inline constexpr std::size_t distinct_tokens = sink_tokens + distinct_pages * page_tokens + tail_tokens;

/// `Backend` gives the page's size.
template <class Backend>
std::size_t bytes_per_call(job const& what, format_choice const& format) {
  std::size_t page_bytes = 0;
  visit_measured(format, [&]<class S>(std::type_identity<S>) {
    artifact_info const info = info_of<S>(what.shape, format);
    page_bytes = Backend::template page_layout<S>::page_bytes(geometry_for<S>(info));
  });
  std::size_t const pages = what.context / page_tokens * static_cast<std::size_t>(what.shape.kv_heads);
  std::size_t const exact_bytes =
      (sink_tokens + tail_tokens) * static_cast<std::size_t>(what.shape.kv_channels()) * 2 * sizeof(half);
  return what.batch * (pages * page_bytes + exact_bytes);
}

/// What one query `q` [1, q_heads · head_dim] behind all tokens of a layer is to find in the query heads that read KV
/// head `head`: [1, group · head_dim].
template <PackedSpec S, class Layout>
reference::matrix expected_of_head(kv_cache<S, Layout> const& cache, artifact<S> const& of, sequence const& tokens,
                                   int layer, int head, view2d<float const> q) {
  model_shape one_head = of.info.shape;
  one_head.q_heads /= std::exchange(one_head.kv_heads, 1);
  auto const width = static_cast<std::size_t>(one_head.q_heads) * static_cast<std::size_t>(one_head.head_dim);
  auto const held = reference::read_head(cache, of, tokens, layer, head);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(held.k.rows()));
  std::iota(positions.begin(), positions.end(), std::int64_t{0});
  return reference::attention(reference::to_matrix(q.middle_cols(static_cast<std::size_t>(head) * width, width)),
                              held.k, held.v, one_head, 1 / std::sqrt(one_head.head_dim), std::span(positions).last(1),
                              positions)
      .out;
}

/// ‖got − expected‖ / ‖expected‖ of one query's result `out`, over KV heads from `first_head` on.
template <PackedSpec S, class Layout>
double relative_error_of(kv_cache<S, Layout> const& cache, artifact<S> const& of, sequence const& tokens, int layer,
                         int first_head, view2d<float const> q, view2d<float const> out) {
  double error = 0, norm = 0;
  for (int head = first_head; head < of.info.shape.kv_heads; ++head) {
    reference::matrix const expected = expected_of_head(cache, of, tokens, layer, head, q);
    auto const columns = static_cast<std::size_t>(expected.cols());
    auto const found = reference::to_matrix(out.middle_cols(static_cast<std::size_t>(head) * columns, columns));
    error += (found - expected).squaredNorm();
    norm += expected.squaredNorm();
  }
  return std::sqrt(error / norm);
}

}  // namespace kvquant::measure
