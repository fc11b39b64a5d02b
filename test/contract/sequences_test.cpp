#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvquant/attend/softmax_state.hpp"
#include "kvquant/rope/rope.hpp"
#include "test/contract/answer.hpp"
#include "test/contract/attention_contract.hpp"
#include "test/contract/problems.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::contract;

/// Queries turned as by a runtime that rotates before it attends; row 0 stands at `first_position`.
float_matrix rotated(float_matrix q, model_shape const& shape, std::size_t first_position) {
  rope const rotation(shape.rope, shape.head_dim);
  auto const d = static_cast<std::size_t>(shape.head_dim);
  for (std::size_t row = 0; row < q.rows; ++row)
    for (std::size_t c = 0; c < q.cols; c += d)
      rotation.rotate(q.view().row(row).subspan(c, d), static_cast<std::int64_t>(first_position + row));
  return q;
}

double relative_l2(float_matrix const& got, float_matrix const& expected) {
  return contract::relative_l2(reference::to_matrix(got), reference::to_matrix(expected));
}

/// One softmax over the tokens of two: `a` and `b` are over different tokens for the same queries.
answer merged(answer const& a, answer const& b, std::size_t head_dim) {
  answer all = a;
  for (std::size_t row = 0; row < a.score_max.rows; ++row)
    for (std::size_t head = 0; head < a.score_max.cols; ++head) {
      softmax_state state{a.score_max.view()(row, head), a.score_sum.view()(row, head)};
      softmax_state const other{b.score_max.view()(row, head), b.score_sum.view()(row, head)};
      auto const o = all.out.view().row(row).subspan(head * head_dim, head_dim);
      auto const o_b = b.out.view().row(row).subspan(head * head_dim, head_dim);
      std::vector<float> weighed(o_b.begin(), o_b.end());
      for (float& x : o) x *= state.l;
      for (float& x : weighed) x *= other.l;
      merge_into(state, o, other, weighed);
      for (float& x : o) x /= state.l;
      all.score_max(row, head) = state.m;
      all.score_sum(row, head) = state.l;
    }
  return all;
}

/// `x` without rows [first, first + count).
reference::matrix without_rows(reference::matrix const& x, Eigen::Index first, Eigen::Index count) {
  reference::matrix out(x.rows() - count, x.cols());
  out << x.topRows(first), x.bottomRows(x.rows() - first - count);
  return out;
}

}  // namespace

TEST_CASE("queries rotated beforehand read the same as queries that attention rotates", "[contract]") {
  for (candidate const& with : under_test().candidates)
    for (rope_config const& rotation : rotations(64)) {
      auto const what = make_problem({.shape = make_shape(1, 2, 64, rotation)}, 200);
      auto const held = with.make(what, what.tokens());
      filled const tokens(what, *held);
      auto const q = make_queries(what, 3);
      auto const before = tokens.attend(rotated(q, what.model.shape, 197), {.space = query_space::post_rope});
      CAPTURE(with.spec, rotation.rotary_dim, static_cast<int>(rotation.pairing));
      check_agrees(before, tokens.expected(q));
      CHECK(relative_l2(before.out, tokens.attend(q).out) <= 2 * under_test().bounds.out);
    }
}

TEST_CASE("two halves of a sequence merge to the whole by m and l", "[contract]") {
  constexpr std::size_t half = 128, all = 300;
  for (candidate const& with : under_test().candidates)
    for (rope_config const& rotation : rotations(64)) {
      // Without sinks, so that pages end at the same tokens in all three.
      auto const what = make_problem({.shape = make_shape(2, 2, 64, rotation), .sinks = 0}, all);
      auto const held = with.make(what, 3 * all);
      filled const whole(what, *held), front(what, *held, 0, half), back(what, *held, half, all - half);
      auto const q = make_queries(what, 1);
      // In the front it stands elsewhere than where it is asked from: it comes rotated.
      auto const a = front.attend(rotated(q, what.model.shape, all - 1), {.space = query_space::post_rope});
      auto const b = back.attend(q);
      CAPTURE(with.spec, rotation.rotary_dim, static_cast<int>(rotation.pairing));
      check_agrees(merged(a, b, 64), whole.expected(q));
    }
}

TEST_CASE("after a range is dropped the tokens behind it stand at its place", "[contract]") {
  for (candidate const& with : under_test().candidates)
    for (rope_config const& rotation : rotations(80)) {
      auto const what = make_problem({.shape = make_shape(2, 2, 80, rotation, 2), .sinks = 5}, 5 + 4 * 64 + 20);
      auto const held = with.make(what, what.tokens());
      filled tokens(what, *held);
      auto const before = held->read(tokens.tokens, 1);
      held->drop(tokens.tokens, 5 + 64, 128);
      auto const q = make_queries(what, 30);
      CAPTURE(with.spec, rotation.rotary_dim, static_cast<int>(rotation.pairing));
      check_agrees(tokens.attend(q, {}, 1),
                   tokens.expected_over(without_rows(before.k, 5 + 64, 128), without_rows(before.v, 5 + 64, 128), q));
    }
}

TEST_CASE("a page that was cut is read up to its cut", "[contract]") {
  auto const what = make_problem({.shape = make_shape(2, 2, 64)}, 250);
  // Five tokens of the cut page: with a short window neither the first nor the last query sees any of them.
  std::size_t const kept = 1 + page_tokens + 5, window = GENERATE(as<std::size_t>(), 0, 1, 3);
  for (candidate const& with : under_test().candidates) {
    CAPTURE(with.spec, window);
    auto const held = with.make(what, what.tokens());
    filled tokens(what, *held);
    held->truncate(tokens.tokens, kept);
    held->append(tokens.tokens, 0, what.k[0].view().middle_rows(200, 40), what.v[0].view().middle_rows(200, 40));
    auto const q = make_queries(what, 60);
    check_agrees(tokens.attend(q, {.window = window}), tokens.expected(q, {.window = window}));
  }
}

TEST_CASE("slots beyond those that a backend may have ready count too", "[contract]") {
  int const head_dim = GENERATE(64, 256);
  auto const what = make_problem({.shape = make_shape(2, 2, head_dim), .outliers_k = 0.06, .outliers_v = 0.05}, 200);
  for (candidate const& with : under_test().candidates) {
    CAPTURE(with.spec, head_dim);
    auto const held = with.make(what, what.tokens());
    filled const tokens(what, *held);
    auto const q = make_queries(what, 3);
    check_agrees(tokens.attend(q), tokens.expected(q));
  }
}

TEST_CASE("a layer is read with its own tokens and tables", "[contract]") {
  auto const what = make_problem({.shape = make_shape(2, 1, 64, {}, 3)}, 150);
  for (candidate const& with : under_test().candidates) {
    auto const held = with.make(what, 3 * what.tokens());
    filled const tokens(what, *held);
    auto const q = make_queries(what, 2);
    for (int layer = 0; layer < 3; ++layer) {
      CAPTURE(with.spec, layer);
      check_agrees(tokens.attend(q, {}, layer), tokens.expected(q, {}, layer));
    }
  }
}

TEST_CASE("a prompt asks from every token at once", "[contract]") {
  auto const what = make_problem({.shape = make_shape(2, 2, 64), .sinks = 2}, 200);
  std::size_t const window = GENERATE(as<std::size_t>(), 0, 1, 10, 64, 100, 1000);
  for (candidate const& with : under_test().candidates) {
    CAPTURE(with.spec, window);
    auto const held = with.make(what, what.tokens());
    filled const tokens(what, *held);
    auto const q = make_queries(what, 200);
    check_agrees(tokens.attend(q, {.window = window}), tokens.expected(q, {.window = window}));
  }
}

TEST_CASE("angles hold over a long sequence", "[contract]") {
  for (rope_config const& rotation : rotations(64)) {
    auto const what = make_problem({.shape = make_shape(1, 1, 64, rotation)}, 20000);
    auto const held = under_test().candidates.front().make(what, what.tokens());
    filled const tokens(what, *held);
    auto const q = make_queries(what, 2);
    check_agrees(tokens.attend(q), tokens.expected(q));
  }
}
