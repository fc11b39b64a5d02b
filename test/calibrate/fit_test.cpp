#include "kvquant/calibrate/fit.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "test/support/calibrated.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using nuq2_spec = spec<nuq<2>, nuq<2>>;
using nuq3_spec = spec<nuq<3>, nuq<3>>;
using fixed_values_spec = spec<nuq<3>, uniform<4>>;

double weight_of(fit_weights weights, double fisher, double scale) {
  switch (weights) {
    case fit_weights::fisher: return fisher * scale * scale;
    case fit_weights::fisher_unscaled: return fisher;
    case fit_weights::activation: return scale * scale;
    case fit_weights::none: return 1;
  }
  return 0;
}

/// The nearest level by comparing with all of them; of two as near, the lower.
std::size_t nearest(std::vector<float> const& levels, double x) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < levels.size(); ++i)
    if (std::abs(x - static_cast<double>(levels[i])) < std::abs(x - static_cast<double>(levels[best]))) best = i;
  return best;
}

/// Σ w (x − decode)² written out for every bin.
double error_of(histogram const& values, codebook const& book) {
  double sum = 0;
  for (moments const& bin : values.bins()) {
    if (!(bin.mass > 0)) continue;
    double const level = static_cast<double>(book.decode_levels[nearest(book.levels, bin.first / bin.mass)]);
    sum += bin.second - 2 * level * bin.first + level * level * bin.mass;
  }
  return sum;
}

struct side_of_layer {
  side_statistics const* statistics;
  codebook const* book;
};

template <Spec S>
std::vector<side_of_layer> all_sides(calibrator const& statistics, artifact<S> const& it) {
  std::vector<side_of_layer> sides;
  for (std::size_t layer = 0; layer < it.layers.size(); ++layer) {
    sides.push_back({&statistics.layers()[layer].key, &it.layers[layer].key});
    sides.push_back({&statistics.layers()[layer].value, &it.layers[layer].value});
  }
  return sides;
}

/// Levels as fitted.
fit_options with(fit_weights weights, bool q_norm = false) {
  fit_options options = small_fit();
  options.weights = weights;
  options.q_norm = q_norm;
  options.int8_levels = false;
  return options;
}

template <Format F>
void check_optimal(calibrator const& statistics, fit_weights weights) {
  auto const it = fit<spec<F, F>>(statistics, with(weights));
  for (auto const& side : all_sides(statistics, it)) {
    histogram const& values = side.statistics->of(weights);
    codebook const& book = *side.book;
    CHECK(book.levels.size() == std::size_t{1} << F::bits);
    CHECK(std::adjacent_find(book.levels.begin(), book.levels.end(), std::greater_equal<>{}) == book.levels.end());
    CHECK(book.decode_levels == book.levels);
    CHECK(book.norm.is_identity());
    CHECK(book.mass == values.total().mass);
    CHECK(book.objective == Approx(error_of(values, book)).epsilon(1e-9));
    CHECK(book.objective == Approx(exact_kmeans(values.bins(), book.levels.size()).objective).epsilon(1e-5));
    for (std::size_t i = 0; i < book.levels.size(); ++i)
      for (float const step : {-0.01f, 0.01f}) {
        codebook moved = book;
        moved.levels[i] += step;
        std::sort(moved.levels.begin(), moved.levels.end());
        moved.decode_levels = moved.levels;
        CHECK(error_of(values, moved) > book.objective);
      }
  }
}

/// Two channels of scales 4 and 1 whose normalised values are −1, 1, 0, and: −1/4 once, in the first channel alone;
/// 1/4 twice, in the second alone. Four levels must merge 0 with one of the two quarters.
calibrator quarters(float first_fisher, float second_fisher) {
  calibration_options const options = {.layers = 1,
                                       .kv_channels = 2,
                                       .outlier_fraction_k = 0,
                                       .outlier_fraction_v = 0,
                                       .sinks = 0,
                                       .max_tokens = 5,
                                       .bins = 64};
  float_matrix k(5, 2), fisher(5, 2);
  std::array<float, 5> const first = {-4, 4, -1, 0, 0}, second = {-1, 1, 0.25f, 0.25f, 0};
  for (std::size_t t = 0; t < 5; ++t) {
    k(t, 0) = first[t], k(t, 1) = second[t];
    fisher(t, 0) = first_fisher, fisher(t, 1) = second_fisher;
  }
  calibrator it(options);
  it.observe_range(0, k);
  it.freeze_ranges();
  it.observe(0, k, k, fisher, fisher);
  return it;
}

std::vector<float> key_levels(calibrator const& statistics, fit_weights weights) {
  fit_options options = with(weights);
  options.shape = {.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 2, .rope = {}};
  return fit<nuq2_spec>(statistics, options).layers[0].key.levels;
}

calibrator observed_without_fisher() {
  calibrator it(small_options());
  observe_ranges(it, 1);
  it.freeze_ranges();
  for (int layer = 0; layer < 2; ++layer) it.observe(layer, random_keys(50, 32, 1), random_keys(50, 32, 2));
  return it;
}

}  // namespace

TEST_CASE("codebooks rise and are optimal for the weights asked for", "[calibrate]") {
  calibrator const statistics = small_calibration();
  for (fit_weights const weights : all_fit_weights) {
    check_optimal<nuq<2>>(statistics, weights);
    check_optimal<nuq<3>>(statistics, weights);
    check_optimal<nuq<4>>(statistics, weights);
  }
}

TEST_CASE("weights are F s^2, F, s^2 or 1 of the values as they were observed", "[calibrate]") {
  auto options = small_options();
  options.outlier_fraction_k = options.outlier_fraction_v = 0;
  options.sinks = 0;
  calibrator statistics(options);
  auto const k = random_keys(60, 32, 5), v = random_keys(60, 32, 6);
  auto const kf = random_weights(60, 32, 7), vf = random_weights(60, 32, 8);
  for (int layer = 0; layer < 2; ++layer) statistics.observe_range(layer, k);
  statistics.freeze_ranges();
  for (int layer = 0; layer < 2; ++layer) statistics.observe(layer, k, v, kf, vf);
  for (fit_weights const weights : all_fit_weights) {
    histogram keys(options.bins), values(options.bins);
    for (std::size_t t = 0; t < 60; ++t) {
      auto const [low, high] = std::minmax_element(v.view().row(t).begin(), v.view().row(t).end());
      affine const token = affine_of(make_range(*low, *high));
      for (std::size_t c = 0; c < 32; ++c) {
        affine const channel = affine_of(statistics.layers()[0].key_ranges[c]);
        keys.add(std::clamp(channel.normalise(k.view()(t, c)), -1.0f, 1.0f),
                 weight_of(weights, static_cast<double>(kf.view()(t, c)), static_cast<double>(channel.scale)));
        values.add(std::clamp(token.normalise(v.view()(t, c)), -1.0f, 1.0f),
                   weight_of(weights, static_cast<double>(vf.view()(t, c)), static_cast<double>(token.scale)));
      }
    }
    auto const it = fit<nuq3_spec>(statistics, with(weights));
    auto const key = exact_kmeans(keys.bins(), 8), value = exact_kmeans(values.bins(), 8);
    CHECK(it.info.weights == weights);
    for (std::size_t i = 0; i < 8; ++i) {
      CHECK(it.layers[1].key.levels[i] == Approx(key.centroids[i]).margin(1e-6));
      CHECK(it.layers[1].value.levels[i] == Approx(value.centroids[i]).margin(1e-6));
    }
    CHECK(it.layers[1].key.objective == Approx(key.objective).epsilon(1e-5));
    CHECK(it.layers[1].value.objective == Approx(value.objective).epsilon(1e-5));
  }
}

TEST_CASE("each choice of weights keeps the value that weighs more by it", "[calibrate]") {
  // A quarter that merges with 0 gives its level to their mean. Weights of 0: twice the first channel's, once the
  // second's.
  auto const check = [](float first, float second, fit_weights weights, bool keeps_first) {
    INFO(to_string(weights) << ", F " << first << " and " << second);
    double const a = weight_of(weights, static_cast<double>(first), 4);
    double const b = weight_of(weights, static_cast<double>(second), 1);
    double const zero = 2 * a + b;
    auto const levels = key_levels(quarters(first, second), weights);
    CHECK(levels.front() == -1);
    CHECK(levels.back() == 1);
    CHECK(levels[1] == Approx(keeps_first ? -0.25 : -0.25 * a / (a + zero)));
    CHECK(levels[2] == Approx(keeps_first ? 0.25 * 2 * b / (2 * b + zero) : 0.25));
  };
  check(1, 2, fit_weights::fisher, true);            // 16 to 4
  check(1, 2, fit_weights::fisher_unscaled, false);  // 1 to 4
  check(1, 2, fit_weights::activation, true);        // 16 to 2
  check(1, 2, fit_weights::none, false);             // 1 to 2
  check(1, 100, fit_weights::fisher, false);         // 16 to 200
  check(1, 100, fit_weights::activation, true);      // whatever F is
  check(10, 1, fit_weights::fisher_unscaled, true);  // 10 to 2
  check(10, 1, fit_weights::none, false);            // whatever F is
}

TEST_CASE("Q-Norm gives rounded values the mean and the deviation they had", "[calibrate]") {
  calibrator const statistics = small_calibration();
  for (fit_weights const weights : all_fit_weights) {
    auto const plain = fit<nuq2_spec>(statistics, with(weights)),
               normed = fit<nuq2_spec>(statistics, with(weights, true));
    CHECK(normed.info.q_norm);
    CHECK_FALSE(plain.info.q_norm);
    auto const plain_sides = all_sides(statistics, plain), sides = all_sides(statistics, normed);
    for (std::size_t i = 0; i < sides.size(); ++i) {
      histogram const& values = sides[i].statistics->of(weights);
      codebook const& book = *sides[i].book;
      CHECK(book.levels == plain_sides[i].book->levels);
      double mass = 0, first = 0, second = 0, decoded = 0, decoded_squared = 0;
      for (moments const& bin : values.bins()) {
        if (!(bin.mass > 0)) continue;
        double const level = static_cast<double>(book.decode_levels[nearest(book.levels, bin.first / bin.mass)]);
        mass += bin.mass, first += bin.first, second += bin.second;
        decoded += bin.mass * level, decoded_squared += bin.mass * level * level;
      }
      auto const deviation = [&](double sum, double squares) {
        return std::sqrt(squares / mass - sum / mass * (sum / mass));
      };
      CHECK(decoded / mass == Approx(first / mass).margin(1e-6));
      CHECK(deviation(decoded, decoded_squared) == Approx(deviation(first, second)).epsilon(1e-5));
      CHECK(book.norm.scale > 1);  // means of clusters spread less than the values
      CHECK(book.objective == Approx(error_of(values, book)).epsilon(1e-9));
      CHECK(book.objective > plain_sides[i].book->objective);
      for (std::size_t level = 0; level < 4; ++level)
        CHECK(book.decode_levels[level] ==
              Approx(book.norm.scale * static_cast<double>(book.levels[level]) + book.norm.offset));
    }
  }
}

/// `most_key_loss`, `most_value_loss`: what the int8 grid may add to the error, as a share of it.
template <Format F>
void check_snapped(calibrator const& statistics, double most_key_loss, double most_value_loss) {
  auto const fitted = fit<spec<F, F>>(statistics, with(fit_weights::fisher)),
             snapped = fit<spec<F, F>>(statistics, small_fit());
  for (std::size_t layer = 0; layer < 2; ++layer)
    for (auto const& [side, limit, most_loss] : {std::tuple{&layer_artifact::key, key_grid_limit, most_key_loss},
                                                 {&layer_artifact::value, value_grid_limit, most_value_loss}}) {
      codebook const &before = fitted.layers[layer].*side, &after = snapped.layers[layer].*side;
      CHECK(int8_grid_of(after.levels, limit).holds_all);
      CHECK_FALSE(int8_grid_of(before.levels, limit).holds_all);
      CHECK(after.decode_levels == after.levels);
      CHECK(std::is_sorted(after.levels.begin(), after.levels.end()));
      for (std::size_t i = 0; i < before.levels.size(); ++i)
        CHECK(std::abs(after.levels[i] - before.levels[i]) < 0.51f / static_cast<float>(limit));
      CHECK(after.objective > before.objective);
      CHECK(after.objective < (1 + most_loss) * before.objective);
    }
}

TEST_CASE("levels on the int8 grid cost little", "[calibrate]") {
  // A step adds about step² / 12 to a mean squared error that grows fourfold with every bit less.
  calibrator const statistics = small_calibration();
  check_snapped<nuq<4>>(statistics, 0.025, 0.01);
  check_snapped<nuq<3>>(statistics, 0.006, 0.0025);
  check_snapped<nuq<2>>(statistics, 0.0015, 0.0006);
}

TEST_CASE("the error of a codebook is that of the levels it reads as", "[calibrate]") {
  calibrator const statistics = small_calibration();
  bool const q_norm = GENERATE(false, true);
  fit_options options = small_fit();
  options.q_norm = q_norm;
  auto const it = fit<nuq3_spec>(statistics, options);
  for (auto const& side : all_sides(statistics, it))
    CHECK(side.book->objective == Approx(error_of(side.statistics->of(fit_weights::fisher), *side.book)).epsilon(1e-9));
}

TEST_CASE("with Q-Norm only what codes read as goes to the grid", "[calibrate]") {
  calibrator const statistics = small_calibration();
  fit_options options = with(fit_weights::fisher, true);
  auto const fitted = fit<nuq3_spec>(statistics, options).layers[1].key;
  options.int8_levels = true;
  auto const snapped = fit<nuq3_spec>(statistics, options).layers[1].key;
  CHECK(snapped.levels == fitted.levels);
  CHECK(snapped.norm.scale == fitted.norm.scale);
  auto expected = fitted.decode_levels;
  snap_to_int8_grid(expected, key_grid_limit);
  CHECK(snapped.decode_levels == expected);
  CHECK(expected != fitted.decode_levels);
}

TEST_CASE("fixed formats need key ranges alone", "[calibrate]") {
  calibrator unobserved(small_options());
  observe_ranges(unobserved, 1);
  unobserved.freeze_ranges();
  auto const it = fit<spec<normal_float<3>, uniform<4>>>(unobserved, with(fit_weights::fisher, true));
  CHECK(it.layers[0].key.levels.empty());
  CHECK(it.layers[0].key.mass == 0);
  CHECK(it.layers[0].key.objective == 0);
  CHECK_FALSE(it.info.q_norm);  // there are no levels to move
  CHECK(it.layers[1].key_ranges[31].low() == unobserved.layers()[1].key_ranges[31].low());

  calibrator const observed = small_calibration();
  auto const fine = fit<spec<uniform<8>, passthrough>>(observed, small_fit()).layers[1];
  auto const coarse = fit<spec<uniform<2>, uniform<2>>>(observed, small_fit()).layers[1];
  CHECK(fine.value.objective < 1e-6 * fine.value.mass);
  CHECK(fine.key.objective < 1e-4 * fine.key.mass);
  CHECK(fine.key.objective > 0);
  CHECK(coarse.key.objective > 100 * fine.key.objective);
}

TEST_CASE("a side of binary16 has no outliers", "[calibrate]") {
  auto const statistics = small_calibration();
  auto const fractions_of = [](artifact_info const& it) {
    return std::tuple(it.outlier_fraction_k, it.outlier_fraction_v);
  };
  CHECK(fractions_of(fit<spec<passthrough, passthrough>>(statistics, small_fit()).info) == std::tuple(0, 0));
  CHECK(fractions_of(fit<spec<passthrough, nuq<3>>>(statistics, small_fit()).info) == std::tuple(0, 0.07));
  CHECK(fractions_of(fit<spec<nuq<3>, passthrough>>(statistics, small_fit()).info) == std::tuple(0.02, 0));
}

TEST_CASE("a fitted side needs observed values, a fixed one beside it does not", "[calibrate]") {
  calibrator keys(small_options());
  observe_ranges(keys, 1);
  keys.freeze_ranges();
  calibrator values = keys;
  for (int layer = 0; layer < 2; ++layer) {
    keys.observe_keys(layer, random_keys(50, 32, 1), random_weights(50, 32, 2));
    values.observe_values(layer, random_keys(50, 32, 1), random_weights(50, 32, 2));
  }
  CHECK_THROWS_WITH(fit<nuq3_spec>(keys, small_fit()), Catch::Contains("needs observed values"));
  CHECK_THROWS_WITH(fit<nuq3_spec>(values, small_fit()), Catch::Contains("needs observed keys"));
  auto const half_fixed = fit<fixed_values_spec>(keys, small_fit());
  CHECK(half_fixed.layers[1].key.mass > 0);
  CHECK(half_fixed.layers[1].value.mass == 0);
  CHECK(fit<spec<uniform<4>, nuq<3>>>(values, small_fit()).layers[1].value.mass > 0);
}

TEST_CASE("Fisher weights that were not observed are refused, others need none", "[calibrate]") {
  calibrator const statistics = observed_without_fisher();
  for (fit_weights const weights : {fit_weights::fisher, fit_weights::fisher_unscaled}) {
    CHECK_THROWS_WITH(fit<nuq3_spec>(statistics, with(weights)),
                      Catch::Contains("layer 0") && Catch::Contains(std::string(to_string(weights))));
    CHECK_NOTHROW(fit<spec<uniform<3>, uniform<3>>>(statistics, with(weights)));
  }
  CHECK_NOTHROW(fit<nuq3_spec>(statistics, with(fit_weights::activation)));
  CHECK_NOTHROW(fit<nuq3_spec>(statistics, with(fit_weights::none)));
}

TEST_CASE("Fisher weights of the fixed side alone do not stand in for those of the fitted one", "[calibrate]") {
  calibrator statistics = observed_without_fisher();
  for (int layer = 0; layer < 2; ++layer)
    statistics.observe_values(layer, random_keys(50, 32, 2), random_weights(50, 32, 3));
  CHECK_THROWS_WITH(fit<fixed_values_spec>(statistics, small_fit()), Catch::Contains("fisher weights"));
  CHECK_NOTHROW(fit<spec<uniform<4>, nuq<3>>>(statistics, small_fit()));
}

TEST_CASE("a side whose weights are all zero gets even levels", "[calibrate]") {
  calibrator statistics(small_options());
  observe_ranges(statistics, 1);
  statistics.freeze_ranges();
  float_matrix const zero(50, 32);
  for (int layer = 0; layer < 2; ++layer)
    statistics.observe(layer, random_keys(50, 32, 1), random_keys(50, 32, 2), zero, random_weights(50, 32, 3));
  auto const it = fit<nuq2_spec>(statistics, with(fit_weights::fisher, true));
  CHECK(it.layers[0].key.levels == std::vector<float>{-1, -1.0f / 3, 1.0f / 3, 1});
  CHECK(it.layers[0].key.norm.is_identity());
  CHECK(it.layers[0].value.mass > 0);
}

TEST_CASE("a fit from merged statistics equals one from all", "[calibrate]") {
  calibrator whole(small_options()), a(small_options());
  observe_ranges(whole, 1);
  observe_ranges(a, 1);
  whole.freeze_ranges();
  a.freeze_ranges();
  calibrator b(small_options());
  b.use_ranges_of(a);
  observe_window(whole, 1);
  observe_window(whole, 50);
  observe_window(a, 1);
  observe_window(b, 50);
  a.merge(b);
  for (bool const q_norm : {false, true}) {
    auto const expected = fit<nuq3_spec>(whole, with(fit_weights::fisher, q_norm));
    auto const found = fit<nuq3_spec>(a, with(fit_weights::fisher, q_norm));
    for (std::size_t layer = 0; layer < 2; ++layer) {
      auto const &x = expected.layers[layer].value, &y = found.layers[layer].value;
      for (std::size_t i = 0; i < 8; ++i) CHECK(y.decode_levels[i] == Approx(x.decode_levels[i]).margin(1e-6));
      CHECK(y.objective == Approx(x.objective));
      CHECK(y.mass == Approx(x.mass));
      CHECK(y.outlier_rate == x.outlier_rate);
      for (std::size_t c = 0; c < 32; ++c)
        CHECK(found.layers[layer].key_sensitivity[c] == Approx(expected.layers[layer].key_sensitivity[c]));
    }
  }
}

TEST_CASE("an artifact says what it was made of", "[calibrate]") {
  auto const statistics = small_calibration();
  fit_options options = small_fit();
  options.keys = key_space::post_rope;
  auto const it = fit<spec<nuq<4>, nuq<2>>>(statistics, options);
  CHECK(it.info.spec == "nuq4/nuq2");
  CHECK(it.info.keys == key_space::post_rope);
  CHECK(it.info.outlier_fraction_k == 0.02);
  CHECK(it.info.outlier_fraction_v == 0.07);
  CHECK(it.info.sinks == 1);
  CHECK(it.info.origin.model_hash == "0123");
  CHECK(it.info.hash.empty());
  REQUIRE(it.layers.size() == 2);
  CHECK(it.layers[1].key.levels.size() == 16);
  CHECK(it.layers[1].value.levels.size() == 4);
  CHECK(it.layers[1].key.outlier_rate == statistics.layers()[1].key.outlier_rate());
  CHECK(it.layers[1].key_sensitivity[7] == Approx(statistics.layers()[1].key.sensitivity[7]));
}

TEST_CASE("statistics of another shape, or none yet, are refused", "[calibrate]") {
  fit_options options = small_fit();
  options.shape.layers = 3;
  CHECK_THROWS_WITH(fit<nuq3_spec>(small_calibration(), options),
                    Catch::Contains("3 layers x 32 channels") && Catch::Contains("statistics of 2 x 32"));
  options = small_fit();
  options.shape.head_dim = 8;
  CHECK_THROWS_AS(fit<nuq3_spec>(small_calibration(), options), error);
  options.shape.head_dim = 0;
  CHECK_THROWS_WITH(fit<nuq3_spec>(small_calibration(), options), Catch::Contains("head_dim is 0"));
  CHECK_THROWS_WITH(fit<nuq3_spec>(calibrator(small_options()), small_fit()), Catch::Contains("not frozen"));
}
