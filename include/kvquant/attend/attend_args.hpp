#pragma once
/// \file
/// What attention is asked: queries of one layer of one sequence.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kvquant/cache/sequence.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/quantize/spec.hpp"

namespace kvquant {

/// Whether queries are rotated already.
enum class query_space { pre_rope, post_rope };

/// Queries of the sequence's last `q.rows` tokens: row i stands at position tokens − q.rows + i and sees the tokens up
/// to its own. All of them read the cache as it is: a page that is sealed is read quantized by every row
/// (`attend_as_decoded` gives each row what it would have seen had the tokens come one by one).
struct attend_args {
  layer_view cache;                           ///< of one layer of the sequence that is asked
  view2d<float const> q;                      ///< [queries, q_heads · head_dim]
  view2d<float> out;                          ///< [queries, q_heads · head_dim]
  view2d<float> score_max{};                  ///< m, [queries, q_heads], or empty: not wanted
  view2d<float> score_sum{};                  ///< l = Σ exp(score − m), [queries, q_heads], or empty
  query_space space = query_space::pre_rope;  ///< of `q`
  std::size_t window = 0;   ///< a query sees this many latest tokens, itself included, and the sinks; 0: all. Within
                            ///< the layer's own window, which leaves out the sinks as well
  float softmax_scale = 0;  ///< of q · k; 0: 1 / sqrt(head_dim)

  /// Where the query of a row stands.
  std::size_t position(std::size_t row) const { return cache.tokens() - q.rows + row; }
  /// Tokens behind the sinks that a query sees, the latest ones, its own included; 0: all.
  std::size_t reach() const {
    return window == 0 ? cache.window : cache.window == 0 ? window : std::min(window, cache.window);
  }
  /// The first token behind the sinks that a query at `position` sees, and the first sink.
  std::size_t first_visible(std::size_t position) const { return first_within(reach(), position); }
  /// See `first_visible`; a window of this call alone hides no sinks.
  std::size_t first_visible_sink(std::size_t position) const { return first_within(cache.window, position); }
  /// What q · k is multiplied with.
  float scale(std::size_t head_dim) const {
    return softmax_scale != 0 ? softmax_scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
  }

 private:
  static std::size_t first_within(std::size_t window, std::size_t position) {
    return window == 0 || position + 1 <= window ? 0 : position + 1 - window;
  }
};

/// Throws `bad_shape` for queries and outputs that do not fit the model, `bad_value` for a scale that is no number
/// above 0, and naming the query that binary16 cannot hold: larger ones could make scores infinite.
inline void validate_queries(view2d<float const> q, view2d<float> out, float softmax_scale, model_shape const& shape) {
  auto const channels = static_cast<std::size_t>(shape.q_heads) * static_cast<std::size_t>(shape.head_dim);
  require(q.cols == channels && out.cols == channels && out.rows == q.rows, errc::bad_shape, "attend: queries ", q.rows,
          " x ", q.cols, ", output ", out.rows, " x ", out.cols, ", expected both queries x ", channels);
  require(std::isfinite(softmax_scale) && softmax_scale >= 0, errc::bad_value, "attend: softmax scale is ",
          softmax_scale, ", expected a finite number above 0, or 0 for 1 / sqrt(head_dim)");
  for (std::size_t row = 0; row < q.rows; ++row)
    for (std::size_t channel = 0; channel < channels; ++channel)
      if (!(std::fabs(q(row, channel)) <= largest_half)) [[unlikely]]
        throw error{errc::bad_value, text("attend: query ", row, ", channel ", channel, " is ", q(row, channel),
                                          ", expected a finite value of at most 65504")};
}

/// `validate_queries`, and `bad_value` for more queries than the sequence has tokens, or for one that sees tokens whose
/// pages were given back.
inline void validate(attend_args const& args, model_shape const& shape) {
  validate_queries(args.q, args.out, args.softmax_scale, shape);
  auto const heads = static_cast<std::size_t>(shape.q_heads);
  for (view2d<float> const& it : {args.score_max, args.score_sum})
    require(it.empty() || (it.rows == args.q.rows && it.cols == heads), errc::bad_shape, "attend: softmax sums ",
            it.rows, " x ", it.cols, ", expected ", args.q.rows, " x ", heads, " or none");
  require(args.q.rows <= args.cache.tokens(), errc::bad_value, "attend: ", args.q.rows, " queries for a sequence of ",
          args.cache.tokens(), " tokens, expected at most as many");
  if (args.cache.gone == 0 || args.q.rows == 0) return;
  std::size_t const kept = args.cache.first_kept(), seen = args.first_visible(args.position(0));
  require(seen >= kept, errc::bad_value, "attend: the first of ", args.q.rows, " queries sees tokens from ", seen,
          ", those before ", kept, " lay behind the layer's window and were given back");
}

}  // namespace kvquant
