#include "kvquant/quantize/spec.hpp"

#include <catch2/catch.hpp>

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
