#include "kvquant/calibrate/channel_fit.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "kvquant/cache/page.hpp"
#include "test/support/calibrated.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using adaptive_spec = spec<adaptive, adaptive>;

fit_options choosing(double bits, double outliers, channel_levels levels = channel_levels::shared) {
  fit_options options = small_fit();
  options.by_channel = {.budget = {bits, outliers}, .levels = levels};
  return options;
}

calibrator const& observed() {
  static calibrator const it = small_calibration(small_channel_options());
  return it;
}

/// Σ F (x − x̂)² over what `observe_window(…, 1)` has seen of a layer's values.
double loss_of_values(artifact<adaptive_spec> const& it, int layer) {
  auto const at = static_cast<std::uint64_t>(1 + layer);
  float_matrix v = random_keys(500, 32, at + 100), fisher = random_weights(500, 32, at + 300);
  auto const side = it.values(layer);
  double sum = 0;
  for (std::size_t token = 1; token < v.rows; ++token)
    for (std::size_t c = 0; c < v.cols; ++c) {
      double const missed = v(token, c) - side.decode(c, side.encode(c, v(token, c)));
      sum += static_cast<double>(fisher(token, c)) * missed * missed;
    }
  return sum;
}

void check_widths(channel_codes const& codes, int head_dim, int token_bits) {
  auto const d = static_cast<std::size_t>(head_dim);
  for (std::size_t first = 0; first < codes.widths.size(); first += d) {
    auto const begin = codes.widths.begin() + static_cast<std::ptrdiff_t>(first), end = begin + head_dim;
    CHECK(std::accumulate(begin, end, 0) == token_bits);
    for (std::uint8_t width = 1; width <= 4; ++width) CHECK(std::count(begin, end, width) % 8 == 0);
  }
}

}  // namespace

TEST_CASE("every head has exactly its bits, in groups of eight channels, pairs of keys alike", "[calibrate]") {
  double const bits = GENERATE(1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5);
  double const outliers = GENERATE(0.0, 0.005);
  auto const levels = GENERATE(channel_levels::shared, channel_levels::own);
  auto const it = fit<adaptive_spec>(observed(), choosing(bits, outliers, levels));
  auto const geometry = geometry_for<adaptive_spec>(it.info);
  double const elements = static_cast<double>(geometry.elements());
  double const used = 8 * static_cast<double>(geometry.used_bytes()) / (2 * elements);
  CHECK(used <= bits + 8.0 * 64 / (2 * elements));  // the rest of a page's last line becomes slots
  if (bits <= 4) CHECK(used > bits - 8.0 / 16);
  if (outliers == 0) CHECK(geometry.k_slots + geometry.v_slots == 0);
  for (layer_artifact const& layer : it.layers) {
    check_widths(layer.key_channels, 16, it.info.key_token_bits);
    check_widths(layer.value_channels, 16, it.info.value_token_bits);
    for (std::size_t first = 0; first < 32; first += 16)
      for (std::size_t pair = 0; pair < 8; ++pair) {
        auto const [a, b] = pair_of(geometry, pair);
        CHECK(layer.key_channels.widths[first + a] == layer.key_channels.widths[first + b]);
      }
  }
}

TEST_CASE("codes take what leaves about the slots that were asked for", "[calibrate]") {
  auto const budget = [](double bits, double outliers) { return budget_of<adaptive_spec>({bits, outliers}, 64); };
  CHECK(budget(3, 0).token_bits == 192);
  CHECK(budget(3, 0).outlier_fraction == 0);
  CHECK(budget(3 + 1.0 / 64, 0).token_bits == 192);
  // 0.5 % of 4096 are 20 slots of 32 bits, which leaves 182 bits for a token's codes: 184 and 16 slots are nearer than
  // 176 and 32 slots.
  CHECK(budget(3, 0.005).token_bits == 184);
  CHECK(budget(3, 0.005).outlier_fraction == 16.0 / 4096);
  CHECK(budget(3, 0.007).token_bits == 176);
  CHECK(budget(3, 0.007).outlier_fraction == 32.0 / 4096);
  CHECK(budget(3, 0.001).token_bits == 184);  // 192 would leave no slots at all
  CHECK(budget(3, 0.001).outlier_fraction == 16.0 / 4096);
  CHECK(budget(4.5, 0.001).token_bits == 256);
  CHECK(budget(4.5, 0.001).outlier_fraction == 64.0 / 4096);
  CHECK_THROWS_WITH(budget(0.99, 0), Catch::Contains("expected at least 1"));
  CHECK_THROWS_WITH(budget(1.2, 0.01), Catch::Contains("leave 0.8") && Catch::Contains("expected at least 1"));
  CHECK_THROWS_AS(budget(NAN, 0), error);
  CHECK_THROWS_AS(budget(3, 1), error);
  CHECK_THROWS_AS(budget(17, 0), error);
}

TEST_CASE("bits go from side to side while the loss falls", "[calibrate]") {
  auto const division = [](double bits, double value_weight) {
    fit_options options = choosing(bits, 0);
    options.by_channel.value_weight = value_weight;
    auto const it = fit<adaptive_spec>(observed(), options);
    return std::pair{it.info.key_token_bits, it.info.value_token_bits};
  };
  CHECK(division(2.5, 1e9) == std::pair{16, 64});  // all that values can use: codes of 4 bits
  CHECK(division(2.5, 1e-9) == std::pair{64, 16});
  CHECK(division(1.5, 1e9) == std::pair{16, 32});
  CHECK(division(4, 1e9) == std::pair{64, 64});
  std::pair<int, int> const chosen = division(2.5, 1);
  int const keys = chosen.first, values = chosen.second;
  auto const losses = detail::losses_of<adaptive_spec>(observed().layers());
  auto const loss = [&](int key_bits) {
    return detail::loss_of(losses.keys, plan_of(small_shape(), true), key_bits) +
           detail::loss_of(losses.values, plan_of(small_shape(), false), keys + values - key_bits);
  };
  CHECK(keys + values == 80);
  CHECK(loss(keys) <= loss(keys - 8));
  CHECK(loss(keys) <= loss(keys + 8));
}

TEST_CASE("the loss that the fit reports is that of the values it has seen", "[calibrate]") {
  auto const levels = GENERATE(channel_levels::shared, channel_levels::own);
  for (double const bits : {2.0, 3.0}) {
    auto const it = fit<adaptive_spec>(observed(), choosing(bits, 0, levels));
    CHECK(it.info.own_levels == (levels == channel_levels::own));
    for (int layer = 0; layer < 2; ++layer)
      CHECK(it.layers[static_cast<std::size_t>(layer)].value.objective ==
            Approx(loss_of_values(it, layer)).epsilon(0.02));
  }
}

TEST_CASE("further bits lose less, and levels of a channel's own no more than shared ones", "[calibrate]") {
  double before = std::numeric_limits<double>::infinity();
  for (double const bits : {1.5, 2.0, 2.5, 3.0, 4.0}) {
    auto const loss = [&](channel_levels levels) {
      auto const it = fit<adaptive_spec>(observed(), choosing(bits, 0, levels));
      return it.layers[0].value.objective + it.layers[1].value.objective;
    };
    double const shared = loss(channel_levels::shared), own = loss(channel_levels::own);
    CHECK(shared < before);
    CHECK(own < shared);
    before = shared;
  }
}

TEST_CASE("a shared table is that of eight channels of a head with its width, pairs of keys together", "[calibrate]") {
  double const bits = GENERATE(1.5, 2.5, 4.0);
  auto const it = fit<adaptive_spec>(observed(), choosing(bits, 0));
  auto const geometry = geometry_for<adaptive_spec>(it.info);
  for (layer_artifact const& layer : it.layers) {
    for (channel_codes const* codes : {&layer.key_channels, &layer.value_channels}) {
      REQUIRE(codes->levels.size() == 32 / 8);
      for (std::size_t table = 0; table < codes->levels.size(); ++table) {
        CHECK(std::count(codes->table_of.begin(), codes->table_of.end(), table) == 8);
        for (std::size_t channel = 0; channel < 32; ++channel)
          if (codes->table_of[channel] == table) {
            CHECK(codes->levels[table].size() == std::size_t{1} << codes->widths[channel]);
            CHECK(table / 2 == channel / 16);
          }
      }
    }
    for (std::size_t first = 0; first < 32; first += 16)
      for (std::size_t pair = 0; pair < 8; ++pair) {
        auto const [a, b] = pair_of(geometry, pair);
        CHECK(layer.key_channels.table_of[first + a] == layer.key_channels.table_of[first + b]);
      }
  }
}

TEST_CASE("channels that are skewed to different sides share no table", "[calibrate]") {
  calibrator it({.layers = 1, .kv_channels = 16, .max_tokens = 500, .channel_bins = 256});
  float_matrix x = random_weights(500, 16, 3);  // of one sign, with a long tail
  for (std::size_t t = 0; t < 500; ++t)
    for (std::size_t c = 0; c < 16; c += 3) x(t, c) = -x(t, c);
  it.observe_range(0, x);
  it.observe_value_range(0, x);
  it.freeze_ranges();
  it.observe(0, x, x, float_matrix(500, 16, 1.0f), float_matrix(500, 16, 1.0f));
  fit_options options = choosing(4, 0);  // all widths are alike
  options.shape = {.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 16, .rope = {}};
  auto const fitted = fit<adaptive_spec>(it, options);
  channel_codes const& codes = fitted.layers[0].value_channels;
  std::vector<std::uint16_t> of_left;  // six channels
  for (std::size_t c = 0; c < 16; c += 3) of_left.push_back(codes.table_of[c]);
  CHECK(std::count(of_left.begin(), of_left.end(), of_left.front()) == 6);
}

TEST_CASE("channels with more at stake get more bits", "[calibrate]") {
  calibrator it({.layers = 1, .kv_channels = 16, .max_tokens = 500, .channel_bins = 256});
  float_matrix const x = random_keys(500, 16, 3);
  float_matrix fisher(500, 16, 1.0f);
  for (std::size_t t = 0; t < 500; ++t)
    for (std::size_t c = 0; c < 16; ++c) fisher(t, c) = c % 2 == 0 ? 1000.0f : 1e-3f;
  it.observe_range(0, x);
  it.observe_value_range(0, x);
  it.freeze_ranges();
  it.observe(0, x, x, fisher, fisher);
  fit_options options = choosing(2.5, 0);
  options.shape = {
      .layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 16, .rope = {.pairing = rope_pairing::interleaved}};
  auto const fitted = fit<adaptive_spec>(it, options);
  for (std::size_t c = 0; c < 16; ++c) {
    CAPTURE(c);
    CHECK(int{fitted.layers[0].value_channels.widths[c]} == (c % 2 == 0 ? 4 : 1));
  }
}

TEST_CASE("a channel of one value reads as it, and others of its table as they would without", "[calibrate]") {
  calibrator it({.layers = 1, .kv_channels = 16, .max_tokens = 500, .channel_bins = 256});
  float_matrix x = random_keys(500, 16, 3);
  for (std::size_t t = 0; t < 500; ++t) x(t, 5) = 2.5f;
  it.observe_range(0, x);
  it.observe_value_range(0, x);
  it.freeze_ranges();
  it.observe(0, x, x, random_weights(500, 16, 4), random_weights(500, 16, 5));
  fit_options options = choosing(2, 0, GENERATE(channel_levels::shared, channel_levels::own));
  options.shape = {.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 16, .rope = {}};
  auto const fitted = fit<adaptive_spec>(it, options);
  auto const side = fitted.values(0);
  CHECK(side.decode(5, side.encode(5, 2.5f)) == Approx(2.5f).margin(1e-3));
  float const far = side.decode(5, side.encode(5, 100.0f));
  CHECK(std::isfinite(far));
  CHECK(far < 3);
}

TEST_CASE("statistics without histograms of channels, or by other weights, are refused", "[calibrate]") {
  calibrator const plain = small_calibration();
  CHECK_THROWS_WITH(fit<adaptive_spec>(plain, choosing(3, 0)), Catch::Contains("needs the keys of each channel"));
  fit_options options = choosing(3, 0);
  options.weights = fit_weights::activation;
  CHECK_THROWS_WITH(fit<adaptive_spec>(observed(), options), Catch::Contains("were observed with gradients"));
}

TEST_CASE("keys alone may have widths of their own", "[calibrate]") {
  using mixed = spec<adaptive, nuq<3>>;
  auto const it = fit<mixed>(observed(), choosing(2.5, 0.01));
  CHECK(it.info.key_token_bits > 0);
  CHECK(it.info.value_token_bits == 0);
  CHECK(it.info.outlier_fraction_v == 0.07);
  CHECK(it.layers[0].value.levels.size() == 8);
  CHECK(it.layers[0].value_channels.widths.empty());
}
