#include "tools/plan/solve.hpp"

#include <algorithm>
#include <catch2/catch.hpp>

#include "kvquant/calibrate/fit.hpp"
#include "kvquant/core/executor.hpp"
#include "test/support/calibrated.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

saved_statistics small_statistics(calibration_options const& options) {
  return {small_calibration(options), small_shape(), key_space::pre_rope, small_fit().origin};
}

plan::loss_table const& small_losses() {
  static plan::loss_table const it = [] {
    inline_executor here;
    return plan::losses_of(small_statistics(small_channel_options()), here);
  }();
  return it;
}

plan::side_losses const& losses_in(std::vector<plan::side_losses> const& all, std::string const& format) {
  for (plan::side_losses const& it : all)
    if (to_string(it.format) == format) return it;
  throw error{errc::bad_value, format};
}

plan::cache_request small_request() { return {.shape = small_shape(), .tokens = 1000}; }

}  // namespace

TEST_CASE("losses are half of what the fits leave", "[plan]") {
  auto const& losses = small_losses();
  auto const statistics = small_calibration(small_channel_options());
  auto const nuq3 = fit<spec<nuq<3>, nuq<3>>>(statistics, small_fit());
  CHECK(losses_in(losses.keys, "nuq3-2%").by_layer[1] == Approx(nuq3.layers[1].key.objective / 2));
  CHECK(losses_in(losses.values, "nuq3-7%").by_layer[0] == Approx(nuq3.layers[0].value.objective / 2));
  CHECK(losses_in(losses.keys, "f16").total() == 0);

  fit_options own = small_fit();
  own.by_channel = {.budget = {2.5, 0}, .levels = channel_levels::own};
  own.int8_levels = false;
  auto const adaptive25 = fit<spec<adaptive, adaptive>>(statistics, own);
  // The sides divide 5 bits between them.
  auto const of_16_channels = [](int token_bits) { return text("adaptive", token_bits / 16.0); };
  for (std::size_t layer = 0; layer < 2; ++layer) {  // ranges are kept in binary16
    CHECK(losses_in(losses.keys, of_16_channels(adaptive25.info.key_token_bits)).by_layer[layer] ==
          Approx(adaptive25.layers[layer].key.objective / 2).epsilon(0.01));
    CHECK(losses_in(losses.values, of_16_channels(adaptive25.info.value_token_bits)).by_layer[layer] ==
          Approx(adaptive25.layers[layer].value.objective / 2).epsilon(0.01));
  }
}

TEST_CASE("more bits lose less, and so do slots on top", "[plan]") {
  auto const& keys = small_losses().keys;
  CHECK(losses_in(keys, "nuq2-2%").total() > losses_in(keys, "nuq3-2%").total());
  CHECK(losses_in(keys, "adaptive2").total() > losses_in(keys, "adaptive3").total());
  // Of pages of 64 x 16 elements 0.5 % slots are 5, the bits of 2.5 channels: codes have 8 bits fewer, the rest is
  // slots.
  CHECK(losses_in(keys, "adaptive3-0.5%").total() < losses_in(keys, "adaptive2.5").total());
  CHECK(losses_in(keys, "adaptive3-0.5%").total() > losses_in(keys, "adaptive4").total());
}

TEST_CASE("statistics without gradients tell no losses", "[plan]") {
  calibrator it(small_options());
  observe_ranges(it, 1);
  it.freeze_ranges();
  for (int layer = 0; layer < 2; ++layer) it.observe(layer, random_keys(100, 32, 1), random_keys(100, 32, 2), {}, {});
  inline_executor here;
  CHECK_THROWS_WITH(plan::losses_of({it, small_shape(), key_space::pre_rope, {}}, here), Catch::Contains("gradients"));
}

TEST_CASE("losses of one calibration are merged, those of another refused", "[plan]") {
  plan::loss_table all = small_losses(), more = small_losses();
  more.keys = {{plan::parse_cache_format("nuq3-2%").key, {1, 2}}, {plan::parse_cache_format("nuq3-4%").key, {3, 4}}};
  merge(all, more);
  CHECK(all.keys.size() == small_losses().keys.size() + 1);
  CHECK(losses_in(all.keys, "nuq3-2%").by_layer == std::vector<double>{1, 2});
  CHECK(losses_in(all.keys, "nuq3-4%").by_layer == std::vector<double>{3, 4});
  CHECK(all.makeable == small_losses().makeable);
  more.origin.model_hash = "another";
  CHECK_THROWS_WITH(merge(all, more), Catch::Contains("another"));
}

TEST_CASE("the more may differ, the less is lost within a budget", "[plan]") {
  auto const solved = plan::solve(small_losses(), small_request(), 80000);
  for (plan::solution const* it : {&solved.makeable, &solved.sides_apart, &solved.layers_apart}) {
    CHECK(it->bytes <= 80000);
    CHECK(it->by_layer.size() == 2);
  }
  constexpr double rounding = 1 + 1e-12;  // sums are of another order
  CHECK(solved.makeable.loss * rounding >= solved.sides_apart.loss);
  CHECK(solved.sides_apart.loss * rounding >= solved.layers_apart.loss);
  CHECK(std::ranges::find(small_losses().makeable, solved.makeable.by_layer.front()) != small_losses().makeable.end());
  for (plan::curve_point const& point : solved.curve) {
    bool is_beaten = false;
    for (plan::curve_point const& other : solved.curve)  // of equals the first is none
      is_beaten |= other.bytes <= point.bytes && other.loss <= point.loss &&
                   (other.bytes < point.bytes || other.loss < point.loss || &other < &point);
    CHECK(point.is_pareto == !is_beaten);
    CHECK(point.loss * rounding >= point.sides_apart);
    CHECK(point.sides_apart * rounding >= point.layers_apart);
  }
}

TEST_CASE("two layers' formats are the best of all pairs of pairs", "[plan]") {
  auto const one = [](char const* format, double first, double second) {
    return plan::side_losses{plan::parse_cache_format(format).key, {first, second}};
  };
  plan::loss_table const losses{small_shape(),
                                {},
                                {one("nuq2", 90, 10), one("nuq3", 20, 9), one("nuq4", 5, 8)},
                                {one("nuq2", 8, 30), one("nuq3", 4, 6), one("nuq4", 2, 1)},
                                {plan::parse_cache_format("nuq2"), plan::parse_cache_format("nuq3")}};
  plan::cache_request request = small_request();
  request.format = plan::parse_cache_format("nuq3");
  std::size_t const budget = plan::bytes_of(request).total() + 1000;
  auto const solved = plan::solve(losses, request, budget);
  CHECK(to_string(solved.makeable.by_layer.front()) == "nuq3");
  CHECK(solved.makeable.loss == 39);
  CHECK(to_string(solved.sides_apart.by_layer.front()) == "nuq3");
  CHECK(to_string(solved.layers_apart.by_layer[0]) == "nuq4/nuq2");
  CHECK(to_string(solved.layers_apart.by_layer[1]) == "nuq2/nuq4");
  CHECK(solved.layers_apart.loss == 5 + 8 + 10 + 1);
  CHECK_THROWS_WITH(plan::solve(losses, request, 1000), Catch::Contains("nuq2") && Catch::Contains("1000"));
}

TEST_CASE("a format's bytes on the curve are those of its plan, with the largest tables", "[plan]") {
  plan::cache_request request = small_request();
  request.shape.layers = 6;
  request.shape.local = {{0, 1, 2, 3, 4}, 128, {}};
  plan::loss_table losses{request.shape, {}, {}, {}, {}};
  for (char const* const format : {"nuq2", "nuq4-1%", "f16"}) {
    losses.keys.push_back({plan::parse_cache_format(format).key, std::vector<double>(6, 1.0)});
    losses.values.push_back(losses.keys.back());
    losses.makeable.push_back(plan::parse_cache_format(format));
  }
  auto const solved = plan::solve(losses, request, std::size_t{1} << 30);
  REQUIRE(solved.curve.size() == 3);
  std::vector<byte_report> planned;
  std::size_t tables = 0;
  for (plan::curve_point const& point : solved.curve) {
    request.format = point.format;
    planned.push_back(plan::bytes_of(request));
    tables = std::max(tables, planned.back().tables);
  }
  for (std::size_t i = 0; i < planned.size(); ++i)
    CHECK(solved.curve[i].bytes == planned[i].total() - planned[i].tables + tables);
}
