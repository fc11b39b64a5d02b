#pragma once
/// \file
/// Appending and attending together, as decoding does.

#include <algorithm>
#include <cstddef>

#include "kvquant/attend/attend_args.hpp"
#include "kvquant/attend/backend.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/core/scoped_timer.hpp"

namespace kvquant {

/// What the two parts of `attend_as_decoded` take.
struct decode_seconds {
  double append = 0;  ///< sealing included
  double attend = 0;  ///< the attention's calls
};

/// What `attend_as_decoded` is given beside the tokens.
struct attend_options {
  query_space space = query_space::pre_rope;  ///< of the queries
  std::size_t window = 0;                     ///< see `attend_args`
  float softmax_scale = 0;                    ///< see `attend_args`
  decode_seconds* spent = nullptr;            ///< if given, grows by what `attend_as_decoded` takes
};

/// Appends tokens to one layer and attends from each of them as if they came one by one: a query sees its own page
/// exactly unless it is the page's last, whatever the number of tokens in this call. `k` (before RoPE), `v` [tokens,
/// kv_channels]; `q`, `out` [tokens, q_heads · head_dim]. The tokens are cut where pages are sealed: 63 and 1 in turn.
/// Throws what `append` and `attend` throw, before anything is stored.
template <class S, class Layout, Attention<S> A>
void attend_as_decoded(kv_cache<S, Layout>& cache, A const& attend, sequence& to, int layer, view2d<float const> k,
                       view2d<float const> v, view2d<float const> q, view2d<float> out, attend_options const& options,
                       executor_ref executor) {
  require(q.rows == k.rows && out.rows == k.rows && v.rows == k.rows, errc::bad_shape, "attend_as_decoded: ", k.rows,
          " keys, ", v.rows, " values, ", q.rows, " queries and ", out.rows, " outputs, expected as many of each");
  validate_queries(q, out, options.softmax_scale, cache.info().shape);
  {
    scoped_timer const timer(options.spent, &decode_seconds::append);
    cache.prepare(to, layer, k, v);
  }
  for (std::size_t first = 0; first < k.rows;) {
    std::size_t const count = std::min(k.rows - first, std::max<std::size_t>(cache.room_before_seal(to, layer), 1));
    {
      scoped_timer const timer(options.spent, &decode_seconds::append);
      cache.append(to, layer, k.middle_rows(first, count), v.middle_rows(first, count), executor);
    }
    attend_args const args{.cache = cache.view(to, layer),
                           .q = q.middle_rows(first, count),
                           .out = out.middle_rows(first, count),
                           .space = options.space,
                           .window = options.window,
                           .softmax_scale = options.softmax_scale};
    scoped_timer const timer(options.spent, &decode_seconds::attend);
    attend(layer, {&args, 1}, executor);
    first += count;
  }
}

}  // namespace kvquant
