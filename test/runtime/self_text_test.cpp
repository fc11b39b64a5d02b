#include "runtime/self_text.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <random>
#include <utility>
#include <vector>

#include "runtime/sampler.hpp"
#include "test/runtime/model_pair.hpp"
#include "test/support/thrown.hpp"

namespace kvquant::runtime {
namespace {

using test::model_pair;
using test::tiny_model;
using windows = std::vector<std::vector<token_id>>;

windows written(model_pair const& it, self_text_options const& options, token_id first = 7) {
  return write_self_text(it.model, it.gguf.file().hash(), first, options);
}

TEST_CASE("every token is drawn by the model's probabilities after those before it") {
  model_pair const it(tiny_model{});
  auto const found = written(it, {.windows = 2, .tokens = 50, .seed = 4});
  REQUIRE(found.size() == 2);
  std::mt19937_64 seeds(4);
  int alike = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    REQUIRE(found[i].size() == 50);
    CHECK(found[i].front() == 7);
    matrix const hidden = it.model.forward(found[i]);
    matrix scores(hidden.rows(), tiny_model::vocabulary);
    it.model.logits(view_of(hidden), view_of(scores));
    sampler draw({.temperature = 1, .seed = seeds()});
    for (std::size_t token = 1; token < found[i].size(); ++token)
      alike += found[i][token] == draw.next(view_of(std::as_const(scores)).row(token - 1)) ? 1 : 0;
  }
  CHECK(alike >= 95);  // of 98: the cache rounds, and a draw between two tokens may fall to either
}

TEST_CASE("windows are the same whatever is written beside them, and differ by seed") {
  model_pair const it(tiny_model{});
  auto const many = written(it, {.windows = 11, .tokens = 12, .seed = 3});
  REQUIRE(many.size() == 11);
  for (std::size_t const fewer : {std::size_t{1}, std::size_t{9}})
    CHECK(windows(many.begin(), many.begin() + static_cast<std::ptrdiff_t>(fewer)) ==
          written(it, {.windows = fewer, .tokens = 12, .seed = 3}));
  CHECK(many[1] != written(it, {.windows = 1, .tokens = 12, .seed = 4}).front());
  CHECK(many[0] != many[1]);
}

TEST_CASE("a call comes for every token but the first of each window") {
  model_pair const it(tiny_model{});
  std::size_t calls = 0;
  write_self_text(it.model, it.gguf.file().hash(), 7, {.windows = 3, .tokens = 5}, [&] { ++calls; });
  CHECK(calls == 12);
  CHECK(written(it, {.windows = 0, .tokens = 5}).empty());
  CHECK(written(it, {.windows = 2, .tokens = 1}) == windows{{7}, {7}});
}

TEST_CASE("windows that the model's context does not hold are refused") {
  model_pair const it(tiny_model{});
  for (std::size_t const tokens : {std::size_t{0}, std::size_t{513}}) {
    auto const found = test::error_of([&] { written(it, {.windows = 1, .tokens = tokens}); });
    CHECK(found.code == errc::bad_value);
    CHECK_THAT(found.text, test::says("expected 1 to 512, the model's context"));
  }
}

}  // namespace
}  // namespace kvquant::runtime
