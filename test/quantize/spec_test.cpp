#include "kvquant/quantize/spec.hpp"

#include <catch2/catch.hpp>

#include "test/support/thrown.hpp"

using namespace kvquant;

TEST_CASE("specs are named after their formats", "[quantize]") {
  CHECK(spec<nuq<3>, nuq<3>>::name() == "nuq3");
  CHECK(spec<nuq<4>, nuq<2>>::name() == "nuq4/nuq2");
  STATIC_REQUIRE(Spec<spec<nuq<2>, uniform<4>>>);
  STATIC_REQUIRE_FALSE(Spec<int>);
}

TEST_CASE("a spec is found by its name", "[quantize]") {
  int calls = 0;
  visit_spec("nuq4", [&]<class S>(std::type_identity<S>) {
    ++calls;
    CHECK(std::is_same_v<typename S::key_format, nuq<4>>);
  });
  CHECK(calls == 1);
  CHECK_THROWS_WITH(visit_spec("nuq9", [](auto) {}), Catch::Contains("nuq9") && Catch::Contains("nuq3"));
}

TEST_CASE("a model's shape is checked member by member", "[quantize]") {
  model_shape const good{30, 9, 3, 64, {}};
  CHECK_NOTHROW(validate(good));
  CHECK(good.kv_channels() == 192);
  auto const with = [&](int model_shape::*member, int value) {
    model_shape bad = good;
    bad.*member = value;
    return bad;
  };
  CHECK_THROWS_WITH(validate(with(&model_shape::layers, 0)), Catch::Contains("layers"));
  CHECK_THROWS_WITH(validate(with(&model_shape::q_heads, 8)), Catch::Contains("multiple"));
  CHECK_THROWS_WITH(validate(with(&model_shape::kv_heads, -3)), Catch::Contains("kv_heads"));
  CHECK_THROWS_WITH(validate(with(&model_shape::head_dim, 1 << 20)), Catch::Contains("head_dim"));
  CHECK_THROWS_AS(validate(model_shape{1, 4096, 4096, 64, {}}), error);
}

TEST_CASE("local layers have a window and a rotation of their own", "[quantize]") {
  model_shape shape{.layers = 4, .q_heads = 2, .kv_heads = 1, .head_dim = 64, .rope = {.theta = 1e6}};
  CHECK_FALSE(shape.is_local(0));
  CHECK(shape.window_of(0) == 0);
  CHECK(shape.rope_of(0).theta == 1e6);
  shape.local = {.layers = {0, 2}, .window = 512, .rope = {.theta = 1e4, .rotary_dim = 64}};
  CHECK_NOTHROW(validate(shape));
  for (int const layer : {0, 2}) {
    CHECK(shape.is_local(layer));
    CHECK(shape.window_of(layer) == 512);
    CHECK(shape.rope_of(layer).theta == 1e4);
  }
  CHECK_FALSE(shape.is_local(1));
  CHECK(shape.window_of(3) == 0);
  CHECK(shape.rope_of(3).theta == 1e6);
}

TEST_CASE("local layers that cannot be are refused", "[quantize]") {
  auto const check_refused = [](local_layers const& local, errc code, std::string const& what) {
    model_shape shape{.layers = 4, .q_heads = 2, .kv_heads = 1, .head_dim = 64};
    shape.local = local;
    auto const refusal = test::error_of([&] { validate(shape); });
    CHECK(refusal.code == code);
    CHECK_THAT(refusal.text, Catch::Contains(what));
  };
  check_refused({.layers = {0, 4}, .window = 8}, errc::bad_shape, "local layer 4 after 0");
  check_refused({.layers = {-1}, .window = 8}, errc::bad_shape, "local layer -1");
  check_refused({.layers = {2, 2}, .window = 8}, errc::bad_shape, "local layer 2 after 2");
  check_refused({.layers = {2, 1}, .window = 8}, errc::bad_shape, "local layer 1 after 2");
  check_refused({.layers = {1}}, errc::bad_shape, "window of local layers is 0");
  check_refused({.layers = {1}, .window = 8, .rope = {.rotary_dim = 32}}, errc::unsupported, "turn 32 channels");
  check_refused({.layers = {1}, .window = 8, .rope = {.enabled = false}}, errc::unsupported, "turn 0 channels");
  check_refused({.layers = {1}, .window = 8, .rope = {.pairing = rope_pairing::interleaved}}, errc::unsupported,
                "the same channels in the same pairs");
}
