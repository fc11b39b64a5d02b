#include "kvquant/reference/attention.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "kvquant/core/error.hpp"
#include "test/support/coded.hpp"
#include "test/support/exact_rotation.hpp"
#include "test/support/random_matrix.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;
using Catch::Contains;
using reference::attention_result;
using reference::matrix;

using positions = std::vector<std::int64_t>;

constexpr double infinity = std::numeric_limits<double>::infinity();

positions counted(std::size_t count, std::int64_t first = 0) {
  positions out(count);
  std::iota(out.begin(), out.end(), first);
  return out;
}

matrix random(Eigen::Index rows, Eigen::Index cols, std::uint64_t seed) {
  return reference::to_matrix(random_keys(static_cast<std::size_t>(rows), static_cast<std::size_t>(cols), seed)) / 4;
}

/// Queries, keys and values of some shape, with queries after the last key unless moved.
struct problem {
  model_shape shape;
  matrix q, k, v;
  positions q_at, k_at;
  double scale;

  problem(model_shape const& s, std::size_t queries, std::size_t tokens, std::uint64_t seed = 1)
      : shape(s),
        q(random(static_cast<Eigen::Index>(queries), s.q_heads * s.head_dim, seed)),
        k(random(static_cast<Eigen::Index>(tokens), s.kv_channels(), seed + 1)),
        v(random(static_cast<Eigen::Index>(tokens), s.kv_channels(), seed + 2)),
        q_at(counted(queries, static_cast<std::int64_t>(tokens) - 1)),
        k_at(counted(tokens)),
        scale(1 / std::sqrt(s.head_dim)) {}

  attention_result attend() const { return reference::attention(q, k, v, shape, scale, q_at, k_at); }
};

model_shape make_shape(int q_heads, int kv_heads, int head_dim, rope_config const& rotation = {}) {
  return {.layers = 1, .q_heads = q_heads, .kv_heads = kv_heads, .head_dim = head_dim, .rope = rotation};
}

std::vector<model_shape> varied_shapes() {
  return {make_shape(1, 1, 3, {.enabled = false}), make_shape(4, 4, 4),
          make_shape(6, 2, 8, {.pairing = rope_pairing::interleaved}), make_shape(3, 1, 7, {.rotary_dim = 4}),
          make_shape(4, 2, 8, {.scaling = rope_scaling::yarn, .factor = 8, .original_context = 64})};
}

/// One head of one row, rotated by the definition.
std::vector<double> head_of(matrix const& x, Eigen::Index row, Eigen::Index head, rope const& rotation,
                            std::int64_t position) {
  std::span<double const> const channels(x.row(row).data() + head * rotation.head_dim(),
                                         static_cast<std::size_t>(rotation.head_dim()));
  return exactly_rotated(channels, rotation.pairing(), rotation.inverse_frequencies(), position,
                         rotation.attention_factor());
}

/// One query head by loops, without any trick: weights are e^score, not relative to the largest.
void check_head(problem const& it, attention_result const& result, Eigen::Index t, Eigen::Index head) {
  rope const rotation(it.shape.rope, it.shape.head_dim);
  std::int64_t const at = it.q_at[static_cast<std::size_t>(t)];
  Eigen::Index const kv_head = head * it.shape.kv_heads / it.shape.q_heads, d = it.shape.head_dim;
  auto const q = head_of(it.q, t, head, rotation, at);
  double largest = -infinity;
  long double sum = 0;
  std::vector<long double> out(static_cast<std::size_t>(d), 0);
  for (Eigen::Index j = 0; j < it.k.rows(); ++j) {
    std::int64_t const key_at = it.k_at[static_cast<std::size_t>(j)];
    if (key_at > at) continue;
    auto const k = head_of(it.k, j, kv_head, rotation, key_at);
    double const score = it.scale * std::inner_product(q.begin(), q.end(), k.begin(), 0.0);
    long double const weight = std::exp(static_cast<long double>(score));
    largest = std::max(largest, score);
    sum += weight;
    for (Eigen::Index c = 0; c < d; ++c) out[static_cast<std::size_t>(c)] += weight * it.v(j, kv_head * d + c);
  }
  CHECK(result.score_max(t, head) == Approx(largest).margin(1e-13));
  CHECK(result.score_sum(t, head) == Approx(static_cast<double>(sum / std::exp(static_cast<long double>(largest)))));
  for (Eigen::Index c = 0; c < d; ++c)
    CHECK(result.out(t, head * d + c) ==
          Approx(static_cast<double>(out[static_cast<std::size_t>(c)] / sum)).epsilon(1e-11).margin(1e-12));
}

void check_all(problem const& it) {
  auto const result = it.attend();
  REQUIRE(result.out.rows() == it.q.rows());
  REQUIRE(result.out.cols() == it.q.cols());
  REQUIRE(result.score_max.cols() == it.shape.q_heads);
  for (Eigen::Index t = 0; t < it.q.rows(); ++t)
    for (Eigen::Index head = 0; head < it.shape.q_heads; ++head) check_head(it, result, t, head);
}

/// The keys and values whose bit is set in `chosen`.
problem part_of(problem const& whole, std::vector<bool> const& chosen) {
  problem part = whole;
  Eigen::Index rows = 0;
  part.k_at.clear();
  for (std::size_t j = 0; j < chosen.size(); ++j) {
    if (!chosen[j]) continue;
    part.k.row(rows) = whole.k.row(static_cast<Eigen::Index>(j));
    part.v.row(rows++) = whole.v.row(static_cast<Eigen::Index>(j));
    part.k_at.push_back(whole.k_at[j]);
  }
  part.k.conservativeResize(rows, Eigen::NoChange);
  part.v.conservativeResize(rows, Eigen::NoChange);
  return part;
}

double largest_difference(matrix const& a, matrix const& b) { return (a - b).cwiseAbs().maxCoeff(); }

}  // namespace

TEST_CASE("attention by hand: weights are e to the score, over their sum", "[reference]") {
  problem it(make_shape(1, 1, 2, {.enabled = false}), 1, 3);
  it.q << 1, 0;
  it.k << std::log(2), 0, 0, 5, std::log(3), 1;  // weights 2, 1, 3
  it.v << 6, 0, 12, 60, -2, 0;
  it.scale = 1;
  auto const result = it.attend();
  CHECK(result.out(0, 0) == Approx((2 * 6 + 1 * 12 + 3 * -2) / 6.0));
  CHECK(result.out(0, 1) == Approx(10));
  CHECK(result.score_max(0, 0) == Approx(std::log(3)));
  CHECK(result.score_sum(0, 0) == Approx(2));  // (2 + 1 + 3) / 3
  it.scale = 2;                                // weights 4, 1, 9
  CHECK(it.attend().out(0, 1) == Approx(60 / 14.0));
}

TEST_CASE("attention agrees with plain loops over heads, queries and keys", "[reference]") {
  for (auto const& shape : varied_shapes()) {
    CAPTURE(shape.q_heads, shape.kv_heads, shape.head_dim);
    check_all(problem(shape, 1, 1));
    check_all(problem(shape, 3, 17));
    problem prompt(shape, 9, 9);
    prompt.q_at = counted(9);
    check_all(prompt);
  }
}

TEST_CASE("query heads share KV heads in consecutive groups", "[reference]") {
  problem it(make_shape(6, 2, 4), 1, 5);
  it.v.leftCols(4).setConstant(1);
  it.v.rightCols(4).setConstant(2);
  auto const out = it.attend().out;
  for (Eigen::Index head = 0; head < 6; ++head) CHECK(out(0, head * 4) == Approx(head < 3 ? 1 : 2).epsilon(1e-14));
}

TEST_CASE("a query sees keys by position, not by row", "[reference]") {
  problem it(make_shape(2, 1, 4), 3, 6);
  it.k_at = {40, 3, 3, 1000, 7, 0};
  it.q_at = {3, 999, 1000};
  check_all(it);
  auto const before = it.attend().out;
  it.k.row(3) *= 2;
  it.v.row(3).setConstant(100);
  auto const after = it.attend().out;
  CHECK(after.topRows(2) == before.topRows(2));
  CHECK(largest_difference(after.row(2), before.row(2)) > 1);
}

TEST_CASE("a window hides all keys but the latest and the sinks", "[reference]") {
  problem it(make_shape(2, 1, 4), 4, 30);
  it.q_at = {2, 11, 12, 29};
  std::int64_t const window = GENERATE(1, 5, 12, 30, 1000), sinks = GENERATE(0, 3);
  auto const result = reference::attention(it.q, it.k, it.v, it.shape, it.scale, it.q_at, it.k_at, {window, sinks});
  for (std::size_t t = 0; t < it.q_at.size(); ++t) {
    std::vector<bool> seen(30);
    for (std::int64_t key = 0; key < 30; ++key)
      seen[static_cast<std::size_t>(key)] = key < sinks || key > it.q_at[t] - window;
    problem alone = part_of(it, seen);
    alone.q_at.assign(4, it.q_at[t]);
    auto const part = alone.attend();
    auto const row = static_cast<Eigen::Index>(t);
    CAPTURE(window, sinks, it.q_at[t]);
    CHECK(largest_difference(result.out.row(row), part.out.row(row)) < 1e-14);
    CHECK(largest_difference(result.score_max.row(row), part.score_max.row(row)) == 0);
    CHECK(largest_difference(result.score_sum.row(row), part.score_sum.row(row)) < 1e-13);
  }
}

TEST_CASE("the first token of a prompt reads its own value", "[reference]") {
  problem it(make_shape(2, 2, 4), 5, 5);
  it.q_at = counted(5);
  auto const result = it.attend();
  CHECK(largest_difference(result.out.row(0), it.v.row(0)) == 0);
  CHECK(result.score_sum(0, 0) == 1);
}

TEST_CASE("the order of keys does not matter", "[reference]") {
  problem const it(make_shape(2, 1, 8), 2, 20);
  std::vector<std::size_t> order(20);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  problem shuffled = it;
  for (std::size_t j = 0; j < order.size(); ++j) {
    shuffled.k.row(static_cast<Eigen::Index>(j)) = it.k.row(static_cast<Eigen::Index>(order[j]));
    shuffled.v.row(static_cast<Eigen::Index>(j)) = it.v.row(static_cast<Eigen::Index>(order[j]));
    shuffled.k_at[j] = it.k_at[order[j]];
  }
  CHECK(largest_difference(it.attend().out, shuffled.attend().out) < 1e-13);
}

TEST_CASE("only differences of positions matter, up to 10M tokens and beyond", "[reference]") {
  for (auto const& shape : varied_shapes()) {
    problem it(shape, 4, 12);
    it.q_at = {3, 11, 60, 500};
    auto const here = it.attend();
    for (std::int64_t const shift : {std::int64_t{1}, std::int64_t{10'000'000}, rope::max_position - 500}) {
      problem there = it;
      for (std::int64_t& at : there.q_at) at += shift;
      for (std::int64_t& at : there.k_at) at += shift;
      auto const result = there.attend();
      CAPTURE(shape.head_dim, shift);
      CHECK(largest_difference(here.out, result.out) < 1e-12);
      CHECK(largest_difference(here.score_max, result.score_max) < 1e-12);
    }
    if (!shape.rope.enabled) continue;
    problem apart = it;
    for (std::int64_t& at : apart.q_at) at += 1;
    CHECK(largest_difference(here.score_max, apart.attend().score_max) > 1e-6);
  }
}

TEST_CASE("two parts of the keys merge to the whole by their largest score and sum", "[reference]") {
  for (auto const& shape : varied_shapes()) {
    problem const whole(shape, 3, 24);
    std::vector<bool> chosen(24), others(24);
    for (std::size_t j = 0; j < 24; ++j) others[j] = !(chosen[j] = j % 3 == 1 || j > 15);
    auto const all = whole.attend(), a = part_of(whole, chosen).attend(), b = part_of(whole, others).attend();
    for (Eigen::Index t = 0; t < 3; ++t)
      for (Eigen::Index head = 0; head < shape.q_heads; ++head) {
        double const m = std::max(a.score_max(t, head), b.score_max(t, head));
        double const l_a = a.score_sum(t, head) * std::exp(a.score_max(t, head) - m);
        double const l_b = b.score_sum(t, head) * std::exp(b.score_max(t, head) - m);
        CHECK(all.score_max(t, head) == Approx(m).epsilon(1e-14));
        CHECK(all.score_sum(t, head) == Approx(l_a + l_b).epsilon(1e-13));
        for (Eigen::Index c = head * shape.head_dim; c < (head + 1) * shape.head_dim; ++c)
          CHECK(all.out(t, c) == Approx((l_a * a.out(t, c) + l_b * b.out(t, c)) / (l_a + l_b)).margin(1e-13));
      }
  }
}

TEST_CASE("scores too large for an exponential are no trouble", "[reference]") {
  problem it(make_shape(1, 1, 2, {.enabled = false}), 1, 3);
  it.q << 1, 0;
  it.k << 5000, 0, 5000, 0, -5000, 0;
  it.v << 1, 2, 3, 4, 100, 100;
  it.scale = 1;
  auto const result = it.attend();
  CHECK(result.out(0, 0) == 2);
  CHECK(result.out(0, 1) == 3);
  CHECK(result.score_max(0, 0) == 5000);
  CHECK(result.score_sum(0, 0) == 2);
}

TEST_CASE("attention over codes is attention over what they decode to, sinks as binary16 keeps them", "[reference]") {
  auto const shape = make_shape(4, 2, 8);
  problem const it(shape, 2, 30);
  reference::levels const levels{Eigen::VectorXd::LinSpaced(8, -1, 1), 1.05 * Eigen::VectorXd::LinSpaced(8, -1, 1)};
  float_matrix narrow(30, 16);
  for (std::size_t i = 0; i < narrow.values.size(); ++i) narrow.values[i] = static_cast<float>(it.k.data()[i]);
  auto const k_coded = reference::quantize_keys(it.k, middle_ranges(narrow), levels, true);
  auto const v_coded = reference::quantize_values(it.v, 0.15, levels);
  REQUIRE_FALSE(k_coded.outliers.empty());
  REQUIRE_FALSE(v_coded.outliers.empty());
  int const sinks = GENERATE(0, 1, 4);
  problem decoded = it;
  for (Eigen::Index t = 0; t < 30; ++t)
    for (Eigen::Index c = 0; c < 16; ++c) {
      bool const exact = t < sinks;
      decoded.k(t, c) = exact ? static_cast<double>(round_to_half(static_cast<float>(it.k(t, c))))
                              : k_coded.scale(0, c) * levels.decode(k_coded.codes(t, c)) + k_coded.zero(0, c);
      decoded.v(t, c) = exact ? static_cast<double>(round_to_half(static_cast<float>(it.v(t, c))))
                              : v_coded.scale(t, 0) * levels.decode(v_coded.codes(t, c)) + v_coded.zero(t, 0);
    }
  for (auto const& outlier : k_coded.outliers)
    if (outlier.token >= sinks) decoded.k(outlier.token, outlier.channel) += outlier.residual;
  for (auto const& outlier : v_coded.outliers)
    if (outlier.token >= sinks) decoded.v(outlier.token, outlier.channel) += outlier.residual;

  auto const result =
      reference::attention_over_codes(it.q, it.k, k_coded, it.v, v_coded, sinks, shape, it.scale, it.q_at, it.k_at);
  auto const expected = decoded.attend();
  CHECK(largest_difference(result.out, expected.out) < 1e-14);
  CHECK(largest_difference(result.score_max, expected.score_max) < 1e-13);
  CHECK(largest_difference(result.score_sum, expected.score_sum) < 1e-13);
  CHECK(largest_difference(result.out, it.attend().out) > 1e-3);
}

TEST_CASE("a query that sees no key is an error naming it", "[reference]") {
  problem it(make_shape(1, 1, 4), 3, 4);
  it.q_at = {3, -1, 3};
  CHECK_THROWS_WITH(it.attend(), Contains("query 1 sees no key"));
  CHECK_THROWS_WITH(problem(make_shape(1, 1, 4), 1, 0).attend(), Contains("query 0 sees no key"));
  it.q_at = {3, 3, 3};
  it.k.setConstant(infinity);
  CHECK_THROWS_AS(it.attend(), error);
  CHECK(problem(make_shape(1, 1, 4), 0, 3).attend().out.rows() == 0);
}

TEST_CASE("attention refuses shapes that do not fit", "[reference]") {
  problem const good(make_shape(4, 2, 8), 2, 3);
  auto const check_refused = [&](auto&& spoil, char const* what) {
    problem bad = good;
    spoil(bad);
    try {
      bad.attend();
      FAIL("nothing thrown, expected " << what);
    } catch (error const& caught) {
      CHECK(caught.code == errc::bad_shape);
      CHECK_THAT(caught.what(), Contains(what));
    }
  };
  check_refused([](problem& it) { it.q = random(2, 24, 1); }, "q 2 x 24");
  check_refused([](problem& it) { it.k = random(3, 32, 1); }, "k 3 x 32");
  check_refused([](problem& it) { it.v = random(3, 8, 1); }, "v 3 x 8");
  check_refused([](problem& it) { it.v = random(4, 16, 1); }, "v 4 x 16");
  check_refused([](problem& it) { it.v = random(4, 16, 1); }, "do not fit 4 query heads on 2 KV heads x 8");
  check_refused([](problem& it) { it.q_at.pop_back(); }, "1 and 3 positions for 2 queries and 3 keys");
  check_refused([](problem& it) { it.k_at.push_back(3); }, "2 and 4 positions for 2 queries and 3 keys");
  check_refused([](problem& it) { it.shape.q_heads = 3; }, "q_heads is 3, expected a multiple of kv_heads, 2");
  check_refused([](problem& it) { it.shape.rope.rotary_dim = 3; }, "rotary_dim is 3");
}
