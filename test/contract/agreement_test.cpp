#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "test/contract/answer.hpp"
#include "test/contract/attention_contract.hpp"
#include "test/contract/problems.hpp"
#include "test/support/pairwise.hpp"
#include "test/support/thrown.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::contract;

/// What is varied; a combination chooses one of each, the last member one of `under_test().candidates`.
struct factors {
  std::vector<std::size_t> tokens{1, 63, 64, 65, 1000}, queries{1, 2, 7}, window{0, 1, 10, 64, 100, 5000};
  std::vector<int> head_dim{64, 80, 96, 128, 256}, group{1, 3, 4, 8}, kv_heads{1, 2}, sinks{0, 1, 70},
      recent_pages{0, 1};
  std::vector<data> kind{data::outliers, data::all_equal, data::huge_channel, data::denormal};
  std::vector<std::array<double, 2>> outliers{{0, 0}, {0.01, 0.01}, {0.01, 0}};  // of keys, of values
  std::vector<std::size_t> rotation{0, 1, 2, 3, 4, 5};                           // of `rotations`
  std::vector<float> softmax_scale{0, 0.07f};
  std::vector<bool> q_norm{false, true};

  std::vector<std::size_t> sizes() const {
    return {tokens.size(),   queries.size(),
            window.size(),   head_dim.size(),
            group.size(),    kv_heads.size(),
            sinks.size(),    recent_pages.size(),
            kind.size(),     outliers.size(),
            rotation.size(), softmax_scale.size(),
            q_norm.size(),   under_test().candidates.size()};
  }
};

struct combination {
  candidate const* with;
  problem what;
  float_matrix q;
  manner how;
  data kind;
};

combination combine(factors const& of, std::vector<std::size_t> const& chosen) {
  auto next = chosen.begin();
  auto const take = [&](auto const& choices) { return choices[*next++]; };
  std::size_t const tokens = take(of.tokens), queries = std::min(take(of.queries), tokens), window = take(of.window);
  int const head_dim = take(of.head_dim), group = take(of.group), kv_heads = take(of.kv_heads);
  int const sinks = take(of.sinks), recent_pages = take(of.recent_pages);
  data const kind = take(of.kind);
  auto const [outliers_k, outliers_v] = take(of.outliers);
  rope_config const rotation = rotations(head_dim)[take(of.rotation)];
  float const scale = take(of.softmax_scale);
  bool const q_norm = take(of.q_norm);
  test::hand_made_options const model{make_shape(kv_heads, group, head_dim, rotation), outliers_k, outliers_v, sinks,
                                      q_norm};
  auto what = make_problem(model, tokens, recent_pages, kind);
  auto q = make_queries(what, queries);
  return {
      &under_test().candidates[*next], std::move(what), std::move(q), {.window = window, .softmax_scale = scale}, kind};
}

double largest_head_norm(reference::matrix const& x, Eigen::Index head_dim) {
  double largest = 0;
  for (Eigen::Index row = 0; row < x.rows(); ++row)
    for (Eigen::Index c = 0; c < x.cols(); c += head_dim)
      largest = std::max(largest, x.row(row).segment(c, head_dim).norm());
  return largest;
}

/// What single precision may cost where scores are in the thousands. A score is a sum of d products; with 16 partial
/// sums its error is at most (d/16 + 4) roundings of Σ |q_i k_i| ≤ |q| |k|, and about 8 more go into the operands
/// (decoding, the rotation of both sides, the scale). A weight e^(score − m) has twice that error, relatively, and an
/// output, quotient of two sums of weights, twice again.
double tolerance_of_large_scores(combination const& it, reference::matrix const& k) {
  double const d = it.what.model.shape.head_dim,
               factor = rope(it.what.model.shape.rope, static_cast<int>(d)).attention_factor();
  double const scale = it.how.softmax_scale != 0 ? double{it.how.softmax_scale} : 1 / std::sqrt(d);
  auto const head_dim = static_cast<Eigen::Index>(d);
  double const products = largest_head_norm(reference::to_matrix(it.q), head_dim) * largest_head_norm(k, head_dim);
  return 4 * (d / 16 + 12) * std::ldexp(1, -24) * scale * factor * factor * products;
}

void check_combination(combination const& it) {
  auto const& [who, shape, recent] = std::tuple(it.with->spec, it.what.model.shape, it.what.recent_pages);
  CAPTURE(who, it.what.tokens(), it.q.rows, it.how.window, shape.head_dim, shape.q_heads, shape.kv_heads,
          it.what.model.sinks, recent, static_cast<int>(it.kind), it.what.model.outliers_k, it.what.model.outliers_v,
          shape.rope.rotary_dim, static_cast<int>(shape.rope.pairing), it.how.softmax_scale);
  auto const held = it.with->make(it.what, it.what.tokens());
  filled const sequence(it.what, *held);
  bool const large = it.kind == data::huge_channel;
  if (large && !under_test().bounds.large_scores) return;
  check_agrees(sequence.attend(it.q, it.how), sequence.expected(it.q, it.how),
               large ? tolerance_of_large_scores(it, sequence.of.read(sequence.tokens, 0).k) : 0);
}

}  // namespace

TEST_CASE("attention over a cache is the reference's over what the cache reads as", "[contract]") {
  factors const of;
  for (auto const& chosen : test::pairwise(of.sizes())) check_combination(combine(of, chosen));
}
