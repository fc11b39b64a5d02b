#include "tools/plan/trade_off.hpp"

#include <catch2/catch.hpp>
#include <limits>
#include <random>

using namespace kvquant;

namespace {

using layers_of_choices = std::vector<std::vector<plan::layer_choice>>;

layers_of_choices random_layers(std::size_t layers, std::size_t choices, std::mt19937_64& random) {
  layers_of_choices out(layers);
  for (auto& layer : out)
    for (std::size_t id = 0; id < choices; ++id)
      layer.push_back({1 + random() % 12, static_cast<double>(random() % 100), id});
  return out;
}

/// Of all combinations within the bytes.
double least_loss(layers_of_choices const& layers, std::size_t bytes, std::size_t layer = 0) {
  if (layer == layers.size()) return 0;
  double least = std::numeric_limits<double>::infinity();
  for (plan::layer_choice const& it : layers[layer])
    if (it.bytes <= bytes) least = std::min(least, it.loss + least_loss(layers, bytes - it.bytes, layer + 1));
  return least;
}

}  // namespace

TEST_CASE("of all combinations of layers' choices the best is found for every budget", "[plan]") {
  std::mt19937_64 random(7);
  for (int round = 0; round < 20; ++round) {
    auto const layers = random_layers(5, 5, random);
    plan::trade_off const all(layers);
    for (std::size_t budget = 0; budget <= 62; ++budget) {
      auto const best = all.best_within(budget);
      double const expected = least_loss(layers, budget);
      REQUIRE(best.has_value() == (expected < std::numeric_limits<double>::infinity()));
      if (!best) continue;
      CHECK(all.loss(*best) == expected);
      std::size_t bytes = 0;
      double loss = 0;
      auto const choices = all.choices(*best);
      for (std::size_t layer = 0; layer < layers.size(); ++layer) {
        bytes += layers[layer][choices[layer]].bytes;
        loss += layers[layer][choices[layer]].loss;
      }
      CHECK(bytes == all.bytes(*best));
      CHECK(loss == expected);
    }
  }
}

TEST_CASE("points rise in bytes and fall in loss", "[plan]") {
  std::mt19937_64 random(8);
  plan::trade_off const all(random_layers(6, 8, random));
  for (std::size_t point = 1; point < all.size(); ++point) {
    CHECK(all.bytes(point - 1) < all.bytes(point));
    CHECK(all.loss(point - 1) > all.loss(point));
  }
}

TEST_CASE("of equal choices the first is taken", "[plan]") {
  plan::trade_off const all(layers_of_choices{{{2, 1, 7}, {2, 1, 8}}, {{1, 5, 3}, {1, 5, 4}, {3, 5, 5}}});
  CHECK(all.size() == 1);
  CHECK(all.choices(0) == std::vector<std::size_t>{7, 3});
}
