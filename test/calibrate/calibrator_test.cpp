#include "kvquant/calibrate/calibrator.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "test/support/calibrated.hpp"

using namespace kvquant;
using namespace kvquant::test;

TEST_CASE("key ranges are quantiles without the sinks", "[calibrate]") {
  calibration_options options = small_options();
  options.outlier_fraction_k = 0;
  options.sinks = 2;
  calibrator it(options);
  float_matrix k(10, 32);
  for (std::size_t t = 0; t < 10; ++t)
    for (std::size_t c = 0; c < 32; ++c) k(t, c) = t < 2 ? 1000.0f : static_cast<float>(t) - static_cast<float>(c);
  for (int layer = 0; layer < 2; ++layer) it.observe_range(layer, k);
  it.freeze_ranges();
  for (std::size_t c = 0; c < 32; ++c) {
    CHECK(it.layers()[1].key_ranges[c].low() == 2.0f - static_cast<float>(c));
    CHECK(it.layers()[1].key_ranges[c].high() == 9.0f - static_cast<float>(c));
  }
}

TEST_CASE("about the asked fraction of keys is beyond the ranges, exactly that of values", "[calibrate]") {
  calibrator const it = small_calibration();
  for (layer_statistics const& layer : it.layers()) {
    CHECK(layer.key.outlier_rate() == Approx(0.02).margin(0.004));
    CHECK(layer.value.outliers == 499 * 2);  // round(0.07 / 2 * 32) = 1 at each end
    CHECK(layer.key.values == 499 * 32);
  }
}

TEST_CASE("histograms hold the weights they are named after", "[calibrate]") {
  calibration_options options = small_options();
  options.outlier_fraction_k = options.outlier_fraction_v = 0;
  options.sinks = 0;
  calibrator it(options);
  auto const k = random_keys(50, 32, 1), v = random_keys(50, 32, 2);
  auto const kf = random_weights(50, 32, 3), vf = random_weights(50, 32, 4);
  for (int layer = 0; layer < 2; ++layer) it.observe_range(layer, k);
  it.freeze_ranges();
  it.observe(1, k, v, kf, vf);
  layer_statistics const& layer = it.layers()[1];
  double fisher = 0, scaled = 0, activation = 0;
  for (std::size_t c = 0; c < 32; ++c) {
    double const s = affine_of(layer.key_ranges[c]).scale;
    double channel = 0;
    for (std::size_t t = 0; t < 50; ++t) channel += static_cast<double>(kf.view()(t, c));
    fisher += channel;
    scaled += channel * s * s;
    activation += 50 * s * s;
    CHECK(layer.key.sensitivity[c] == Approx(channel));
  }
  CHECK(layer.key.of(fit_weights::none).total().mass == 50 * 32);
  CHECK(layer.key.of(fit_weights::fisher_unscaled).total().mass == Approx(fisher));
  CHECK(layer.key.of(fit_weights::fisher).total().mass == Approx(scaled));
  CHECK(layer.key.of(fit_weights::activation).total().mass == Approx(activation));
  CHECK(it.layers()[0].key.values == 0);
}

TEST_CASE("merged calibrations equal one that saw everything", "[calibrate]") {
  calibrator whole(small_options()), a(small_options()), b(small_options());
  observe_ranges(whole, 1);
  observe_ranges(whole, 50);
  observe_ranges(a, 1);
  observe_ranges(b, 50);
  a.merge(b);
  for (calibrator* it : {&whole, &a}) it->freeze_ranges();
  calibrator c(small_options());
  c.use_ranges_of(a);
  for (std::size_t layer = 0; layer < 2; ++layer)
    for (std::size_t channel = 0; channel < 32; ++channel) {
      CHECK(a.layers()[layer].key_ranges[channel].lower == whole.layers()[layer].key_ranges[channel].lower);
      CHECK(a.layers()[layer].key_ranges[channel].upper == whole.layers()[layer].key_ranges[channel].upper);
    }
  observe_window(whole, 1);
  observe_window(whole, 50);
  observe_window(a, 1);
  observe_window(c, 50);
  a.merge(c);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    CHECK(a.layers()[layer].key.outliers == whole.layers()[layer].key.outliers);
    for (fit_weights const weights : all_fit_weights) {
      auto const expected = whole.layers()[layer].value.of(weights).bins(),
                 found = a.layers()[layer].value.of(weights).bins();
      for (std::size_t bin = 0; bin < expected.size(); ++bin) {
        CHECK(found[bin].mass == Approx(expected[bin].mass));
        CHECK(found[bin].second == Approx(expected[bin].second).margin(1e-18));
      }
    }
  }
}

TEST_CASE("statistics within other ranges are not merged", "[calibrate]") {
  calibrator a(small_options()), b(small_options());
  observe_ranges(a, 1);
  observe_ranges(b, 2);
  a.freeze_ranges();
  CHECK_THROWS_AS(a.merge(b), error);
  b.freeze_ranges();
  CHECK_THROWS_WITH(a.merge(b), Catch::Contains("key ranges"));
}

TEST_CASE("calibration refuses what it cannot learn from", "[calibrate]") {
  calibrator it(small_options());
  auto k = random_keys(10, 32, 1);
  CHECK_THROWS_WITH(it.observe_range(2, k), Catch::Contains("layer 2"));
  CHECK_THROWS_WITH(it.observe_range(0, random_keys(10, 31, 1)), Catch::Contains("31 channels"));
  CHECK_THROWS_WITH(it.observe(0, k, k), Catch::Contains("freeze_ranges"));
  k(4, 7) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH(it.observe_range(1, k),
                    Catch::Contains("layer 1") && Catch::Contains("channel 7") && Catch::Contains("token 4"));
  CHECK_THROWS_WITH(it.freeze_ranges(), Catch::Contains("no values"));

  calibrator frozen = small_calibration();
  CHECK_THROWS_AS(frozen.observe_range(0, random_keys(10, 32, 1)), error);
  CHECK_THROWS_AS(frozen.freeze_ranges(), error);
  auto const x = random_keys(10, 32, 1);
  CHECK_THROWS_WITH(frozen.observe(0, x, random_keys(9, 32, 1)), Catch::Contains("9"));
  auto weights = random_weights(10, 32, 1);
  weights(3, 3) = -1;
  CHECK_THROWS_WITH(frozen.observe(0, x, x, weights, weights), Catch::Contains("negative"));
  weights(3, 3) = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(frozen.observe(0, x, x, weights, weights), error);

  auto const invalid = [](auto change) {
    calibration_options options = small_options();
    change(options);
    return options;
  };
  CHECK_THROWS_AS(calibrator(invalid([](auto& o) { o.layers = 0; })), error);
  CHECK_THROWS_AS(calibrator(invalid([](auto& o) { o.kv_channels = -1; })), error);
  CHECK_THROWS_AS(calibrator(invalid([](auto& o) { o.sinks = -1; })), error);
  CHECK_THROWS_AS(calibrator(invalid([](auto& o) { o.max_tokens = 0; })), error);
  CHECK_THROWS_AS(calibrator(invalid([](auto& o) { o.outlier_fraction_v = 1.0; })), error);
  CHECK_THROWS_AS(calibrator(invalid([](auto& o) { o.bins = 0; })), error);
}
