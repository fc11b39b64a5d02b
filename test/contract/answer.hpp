#pragma once
/// \file
/// Asking a subject, asking the reference, and comparing.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kvquant/attend/attend_args.hpp"
#include "kvquant/reference/attention.hpp"
#include "test/contract/attention_contract.hpp"
#include "test/contract/subject.hpp"

namespace kvquant::contract {

struct answer {
  float_matrix out, score_max, score_sum;
  friend bool operator==(answer const& a, answer const& b) {
    return a.out.values == b.out.values && a.score_max.values == b.score_max.values &&
           a.score_sum.values == b.score_sum.values;
  }
};

inline answer room_for_answer(problem const& of, std::size_t queries) {
  auto const heads = static_cast<std::size_t>(of.model.shape.q_heads);
  return {float_matrix(queries, of.query_channels()), float_matrix(queries, heads), float_matrix(queries, heads)};
}

inline answer last_rows(answer const& of, std::size_t rows) {
  auto const last = [rows](float_matrix const& x) {
    float_matrix out(rows, x.cols);
    out.values.assign(x.values.end() - static_cast<std::ptrdiff_t>(out.values.size()), x.values.end());
    return out;
  };
  return {last(of.out), last(of.score_max), last(of.score_sum)};
}

/// How attention is asked, beside the queries.
struct manner {
  query_space space = query_space::pre_rope;
  std::size_t window = 0;
  float softmax_scale = 0;
};

inline attend_args make_args(layer_view const& cache, view2d<float const> q, answer& to, manner const& how = {}) {
  return {.cache = cache,
          .q = q,
          .out = to.out.view(),
          .score_max = to.score_max.view(),
          .score_sum = to.score_sum.view(),
          .space = how.space,
          .window = how.window,
          .softmax_scale = how.softmax_scale};
}

/// A subject with one sequence that holds all of a problem's tokens.
struct filled {
  problem const& what;
  subject& of;
  sequence tokens;

  filled(problem const& it, subject& cache) : filled(it, cache, 0, it.tokens()) {}
  filled(problem const& it, subject& cache, sequence of_it) : what(it), of(cache), tokens(std::move(of_it)) {}
  /// Tokens [first, first + count) of the problem.
  filled(problem const& it, subject& cache, std::size_t first, std::size_t count)
      : what(it), of(cache), tokens(cache.open()) {
    for (std::size_t layer = 0; layer < it.k.size(); ++layer)
      of.append(tokens, static_cast<int>(layer), it.k[layer].view().middle_rows(first, count),
                it.v[layer].view().middle_rows(first, count));
  }

  answer attend(view2d<float const> q, manner const& how = {}, int layer = 0) const {
    inline_executor here;
    return attend(q, how, layer, here);
  }
  answer attend(view2d<float const> q, manner const& how, int layer, executor_ref executor) const {
    answer to = room_for_answer(what, q.rows);
    attend_args const args = make_args(of.view(tokens, layer), q, to, how);
    of.attend(layer, {&args, 1}, executor);
    return to;
  }

  /// What the reference makes of the same cache, in double. Queries are before RoPE.
  reference::attention_result expected(view2d<float const> q, manner const& how = {}, int layer = 0) const {
    auto const held = of.read(tokens, layer);
    return expected_over(held.k, held.v, q, how, layer);
  }
  reference::attention_result expected_over(reference::matrix const& k, reference::matrix const& v,
                                            view2d<float const> q, manner const& how = {}, int layer = 0) const {
    std::vector<std::int64_t> positions(static_cast<std::size_t>(k.rows()));
    std::iota(positions.begin(), positions.end(), std::int64_t{0});
    double const scale =
        how.softmax_scale != 0 ? double{how.softmax_scale} : 1 / std::sqrt(double(what.model.shape.head_dim));
    return reference::attention(reference::to_matrix(q), k, v, what.model.shape, scale,
                                std::span(positions).last(q.rows), positions,
                                {static_cast<std::int64_t>(how.window), what.model.sinks}, layer);
  }
};

/// Of the worst row.
inline double relative_l2(reference::matrix const& got, reference::matrix const& expected) {
  double worst = 0;
  for (Eigen::Index row = 0; row < got.rows(); ++row)
    worst = std::max(worst, (got.row(row) - expected.row(row)).norm() / expected.row(row).norm());
  return worst;
}

/// `extra`: what is allowed beyond the backend's bounds.
inline void check_agrees(answer const& got, reference::attention_result const& expected, double extra = 0) {
  using reference::matrix;
  auto const& bounds = under_test().bounds;
  CHECK(relative_l2(reference::to_matrix(got.out), expected.out) <= std::max(extra, bounds.out));
  matrix const m = reference::to_matrix(got.score_max), l = reference::to_matrix(got.score_sum);
  matrix const m_scale = matrix::Ones(m.rows(), m.cols()) + expected.score_max.cwiseAbs();
  CHECK((m - expected.score_max).cwiseAbs().cwiseQuotient(m_scale).maxCoeff() <= std::max(extra, bounds.scores));
  CHECK((l - expected.score_sum).cwiseAbs().cwiseQuotient(expected.score_sum).maxCoeff() <=
        std::max(extra, bounds.scores));
}

}  // namespace kvquant::contract
