#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>

#include "kvquant/cache/row_major_layout.hpp"
#include "test/contract/answer.hpp"
#include "test/contract/attention_contract.hpp"
#include "test/contract/problems.hpp"
#include "test/support/thrown.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::contract;
using test::error_of;
using test::says;

problem small_problem() { return make_problem({.shape = make_shape(2, 2, 64)}, 100); }

/// The description of an artifact that every backend can serve.
artifact_info described() { return artifact_for<spec<nuq<3>, nuq<3>>>(small_problem()).info; }

/// What `supports` says is missing is what the constructor complains of.
void check_unsupported(artifact_info const& info, std::string const& part) {
  support const said = under_test().supports(info);
  CHECK_FALSE(said);
  CHECK_THAT(said.missing, says(part));
  auto const refusal = error_of([&] { under_test().construct_attention(info); });
  CHECK(refusal.code == errc::unsupported);
  CHECK_THAT(refusal.text, says(said.missing));
}

}  // namespace

TEST_CASE("a backend says what of an artifact it does not support, and is not constructed over it", "[contract]") {
  CHECK(under_test().supports(described()));
  auto info = described();
  info.keys = key_space::post_rope;
  check_unsupported(info, "RoPE");
  info = described();
  info.shape.head_dim = 24;
  check_unsupported(info, "head_dim 24");
}

TEST_CASE("a cache refuses keys after RoPE, and the compiler codes that no page holds", "[contract]") {
  using S = spec<nuq<3>, nuq<3>>;
  auto it = artifact_for<S>(small_problem());
  it.info.keys = key_space::post_rope;
  auto const refusal = error_of([&] { kv_cache<S, row_major_layout<S>>(it, {.max_tokens = 64}); });
  CHECK(refusal.code == errc::unsupported);
  CHECK_THAT(refusal.text, says("after RoPE"));
  CHECK(PackedSpec<spec<passthrough, passthrough>>);
  CHECK_FALSE(PackedSpec<spec<passthrough, nuq<3>>>);
  CHECK_FALSE(PackedSpec<spec<nuq<3>, passthrough>>);
}

TEST_CASE("a page comes back from its layout as it was", "[contract]") {
  for (candidate const& with : under_test().candidates)
    for (int const head_dim : {16, 64, 80, 96, 128, 256})
      for (auto const& [k, v] : {std::array{0.0, 0.0}, {0.01, 0.01}, {0.05, 0.0}, {0.0, 0.02}}) {
        CAPTURE(with.spec, head_dim, k, v);
        with.check_layout(head_dim, k, v);
      }
}

TEST_CASE("a batch with a fault is refused as a whole, before anything is written", "[contract]") {
  auto const what = small_problem();
  auto const held = under_test().candidates.front().make(what, what.tokens());
  filled const tokens(what, *held);
  auto const good = make_queries(what, 2);
  auto bad = good;
  bad(1, 7) = std::nanf("");
  auto to = room_for_answer(what, 2), to_bad = room_for_answer(what, 2);
  std::array const batch{make_args(held->view(tokens.tokens, 0), good, to),
                         make_args(held->view(tokens.tokens, 0), bad, to_bad)};
  inline_executor here;
  auto const refusal = error_of([&] { held->attend(0, batch, here); });
  CHECK(refusal.code == errc::bad_value);
  CHECK_THAT(refusal.text, says("query 1, channel 7"));
  CHECK(to == room_for_answer(what, 2));
  for (int const layer : {-1, 1})
    CHECK(error_of([&] { held->attend(layer, std::span(batch).first(1), here); }).code == errc::bad_value);
}

TEST_CASE("no queries and no batch are no trouble", "[contract]") {
  auto const what = small_problem();
  auto const held = under_test().candidates.front().make(what, what.tokens());
  inline_executor here;
  CHECK_NOTHROW(held->attend(0, {}, here));
  CHECK(filled(what, *held).attend(float_matrix(0, what.query_channels())).out.values.empty());
  CHECK(filled(what, *held, 0, 0).attend(float_matrix(0, what.query_channels())).out.values.empty());
}
