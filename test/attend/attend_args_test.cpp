#include "kvquant/attend/attend_args.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "test/support/random_matrix.hpp"
#include "test/support/thrown.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;

constexpr float infinity = std::numeric_limits<float>::infinity();

/// Four query heads of 16 channels over two KV heads; `tokens` of them in the tail.
struct question {
  model_shape shape{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 16};
  float_matrix q, out, score_max, score_sum;
  std::vector<half> exact;
  attend_args args;

  explicit question(std::size_t queries = 3, std::size_t tokens = 10)
      : q(queries, 64, 0.5f), out(queries, 64), score_max(queries, 4), score_sum(queries, 4), exact(tokens * 32) {
    view2d<half const> const rows(exact.data(), tokens, 32);
    args.cache.tail_k = args.cache.tail_v = rows;
    args.q = q.view();
    args.out = out.view();
    args.score_max = score_max.view();
    args.score_sum = score_sum.view();
  }
  question(question const&) = delete;
  question& operator=(question const&) = delete;

  void check() const { validate(args, shape); }
};

/// What is said of a question once it is spoilt.
template <class F>
thrown complaint(F const& spoil, std::size_t queries = 3, std::size_t tokens = 10) {
  question it(queries, tokens);
  spoil(it);
  return error_of([&] { it.check(); });
}

}  // namespace

TEST_CASE("queries stand at the sequence's last positions", "[attend]") {
  question const it(3, 10);
  CHECK(it.args.position(0) == 7);
  CHECK(it.args.position(2) == 9);
  question const all(10, 10);
  CHECK(all.args.position(0) == 0);
}

TEST_CASE("a window's first token is its length before the next one", "[attend]") {
  attend_args args;
  CHECK(args.first_visible(0) == 0);
  CHECK(args.first_visible(1000) == 0);
  args.window = 10;
  CHECK(args.first_visible(0) == 0);
  CHECK(args.first_visible(9) == 0);
  CHECK(args.first_visible(10) == 1);
  CHECK(args.first_visible(1000) == 991);
  args.window = 1;
  CHECK(args.first_visible(1000) == 1000);
  args.window = std::numeric_limits<std::size_t>::max();
  CHECK(args.first_visible(1000) == 0);
}

TEST_CASE("the softmax scale is 1 / sqrt(head_dim) unless given", "[attend]") {
  attend_args args;
  CHECK(args.scale(64) == 0.125f);
  args.softmax_scale = 0.3f;
  CHECK(args.scale(64) == 0.3f);
}

TEST_CASE("a question that fits its model is not refused", "[attend]") {
  question it;
  CHECK_NOTHROW(it.check());
  it.args.score_max = it.args.score_sum = {};
  CHECK_NOTHROW(it.check());
  it.args.softmax_scale = 2;
  it.args.window = 3;
  it.args.space = query_space::post_rope;
  CHECK_NOTHROW(it.check());
  CHECK_NOTHROW(question(10, 10).check());
  CHECK_NOTHROW(question(0, 10).check());
  CHECK_NOTHROW(question(0, 0).check());
}

TEST_CASE("queries and outputs of other shapes are refused", "[attend]") {
  auto const check_refused = [](auto const& spoil, std::string const& what) {
    auto const refusal = complaint(spoil);
    CHECK(refusal.code == errc::bad_shape);
    CHECK_THAT(refusal.text, says(what));
  };
  check_refused([](question& it) { it.args.q = it.args.q.middle_cols(0, 32); }, "queries 3 x 32, output 3 x 64");
  check_refused([](question& it) { it.args.out = it.args.out.middle_cols(0, 63); }, "expected both queries x 64");
  check_refused([](question& it) { it.args.out = it.args.out.middle_rows(0, 2); }, "queries 3 x 64, output 2 x 64");
  check_refused([](question& it) { it.shape.q_heads = 8; }, "expected both queries x 128");
  for (auto const sums : {&attend_args::score_max, &attend_args::score_sum}) {
    check_refused([&](question& it) { it.args.*sums = (it.args.*sums).middle_rows(0, 2); },
                  "softmax sums 2 x 4, expected 3 x 4 or none");
    check_refused([&](question& it) { it.args.*sums = (it.args.*sums).middle_cols(0, 1); }, "softmax sums 3 x 1");
  }
}

TEST_CASE("more queries than tokens are refused", "[attend]") {
  auto const refusal = complaint([](question&) {}, 11, 10);
  CHECK(refusal.code == errc::bad_value);
  CHECK_THAT(refusal.text, says("11 queries for a sequence of 10 tokens"));
}

TEST_CASE("softmax scales that are no numbers above 0 are refused", "[attend]") {
  for (float const scale : {-1.0f, infinity, -infinity, std::nanf("")}) {
    auto const refusal = complaint([scale](question& it) { it.args.softmax_scale = scale; });
    CHECK(refusal.code == errc::bad_value);
    CHECK_THAT(refusal.text, says(text("softmax scale is ", scale)));
  }
}

TEST_CASE("a query that is not finite is refused by its place", "[attend]") {
  for (float const bad : {infinity, -infinity, std::nanf("")})
    for (std::size_t const channel : {std::size_t{0}, std::size_t{63}}) {
      auto const refusal = complaint([&](question& it) { it.q(2, channel) = bad; });
      CHECK(refusal.code == errc::bad_value);
      CHECK_THAT(refusal.text, says(text("query 2, channel ", channel, " is ")));
    }
}
