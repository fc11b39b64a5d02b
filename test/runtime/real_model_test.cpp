/// \file
/// SmolLM2-135M (`KVQUANT_TEST_MODEL`) on Wikitext-2 and other texts (the folder `KVQUANT_TEST_TEXT`).

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "runtime/gguf.hpp"
#include "runtime/model.hpp"
#include "runtime/scoring.hpp"
#include "runtime/simulation/baselines.hpp"
#include "runtime/tokenizer.hpp"
#include "test/runtime/model_pair.hpp"

namespace kvquant::runtime {
namespace {

using test::function_hook;
using test::real_matrix;
using test::to_real;

struct real_model {
  cpu::thread_pool pool;
  gguf_file file;
  runtime::tokenizer tokenizer;
  runtime::model model;

  explicit real_model(std::string const& path) : file(gguf_file::open(path)), tokenizer(file), model(file, pool) {}
};

real_model const& loaded() {
  static real_model const it([] {
    char const* const path = std::getenv("KVQUANT_TEST_MODEL");
    REQUIRE(path != nullptr);
    return std::string(path);
  }());
  return it;
}

std::optional<std::string> read_text(std::string const& name) {
  char const* const folder = std::getenv("KVQUANT_TEST_TEXT");
  std::ifstream file(std::filesystem::path(folder == nullptr ? "" : folder) / name, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

/// The first tokens of Wikitext-2's test part, where that is at hand.
std::optional<std::vector<token_id>> wikitext(std::size_t tokens) {
  auto const text = read_text("wikitext2_test.txt");
  if (!text) {
    WARN("skipped: there is no wikitext2_test.txt in the folder KVQUANT_TEST_TEXT");
    return std::nullopt;
  }
  auto ids = loaded().tokenizer.encode(std::string_view(*text).substr(0, 8 * tokens), {.add_special = false});
  REQUIRE(ids.size() >= tokens);
  ids.resize(tokens);
  return ids;
}

/// Mean loss of predictions 1 … T−1 of a window.
double loss(std::span<token_id const> ids, kv_hook* hook) {
  auto const& m = loaded().model;
  matrix const hidden = m.forward(ids, hook);
  auto const nll = negative_log_likelihood(m, view_of(hidden).middle_rows(0, ids.size() - 1), ids.subspan(1));
  double sum = 0;
  for (double const it : nll) sum += it;
  return sum / static_cast<double>(nll.size());
}

/// Over consecutive windows.
double perplexity(std::span<token_id const> ids, std::size_t window, kv_hook* hook) {
  double sum = 0;
  for (std::size_t at = 0; at < ids.size(); at += window) sum += loss(ids.subspan(at, window), hook);
  return std::exp(sum * static_cast<double>(window) / static_cast<double>(ids.size()));
}

TEST_CASE("all weights of the real model are finite") {
  auto const& file = loaded().file;
  CHECK(file.strings("tokenizer.ggml.tokens").size() > 0);
  for (auto const& tensor : file.tensors()) {
    std::vector<float> weights(tensor.elements());
    dequantize(tensor.type, tensor.data, weights);
    INFO(tensor.name);
    CHECK(std::all_of(weights.begin(), weights.end(), [](float w) { return std::isfinite(w); }));
  }
}

TEST_CASE("the perplexity of eight windows of 1024 tokens with a cache in binary16 is 29.20") {
  auto const ids = wikitext(8 * 1024);
  if (!ids) return;
  auto const cache = simulate_baseline("f16", loaded().model.config(), loaded().model.executor());
  CHECK(perplexity(*ids, 1024, cache.get()) == Approx(29.20).margin(0.05));
  CHECK(cache->bits_per_element() == 16);
}

TEST_CASE("the perplexity of eight windows of 512 tokens is 30.64") {
  auto const ids = wikitext(8 * 512);
  if (!ids) return;
  CHECK(perplexity(*ids, 512, nullptr) == Approx(30.64).margin(0.05));
}

struct layer_gradients {
  real_matrix dk, dk_rotated, dv;
};

/// Derivative of the loss along a direction of length 1; two steps cancel the curvature's second order (Richardson).
double slope(std::span<token_id const> ids, function_hook::change function_hook::*place, int layer,
             real_matrix const& direction, double step) {
  auto const difference = [&](double length) {
    auto const disturbed = [&](double by) {
      function_hook hook;
      hook.*place = [&](int at, view2d<float> x) {
        if (at != layer) return;
        for (std::size_t t = 0; t < x.rows; ++t)
          for (std::size_t c = 0; c < x.cols; ++c)
            x(t, c) += static_cast<float>(by * direction(static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(c)));
      };
      return loss(ids, &hook);
    };
    return (disturbed(length) - disturbed(-length)) / (2 * length);
  };
  return (4 * difference(step) - difference(2 * step)) / 3;
}

TEST_CASE("the real model's gradients are the slopes of its loss") {
  std::string_view const text =
      "The tower is 324 metres tall, about the same height as an 81-storey building, and the tallest structure in "
      "Paris. Its base is square, measuring 125 metres on each side. During its construction, it surpassed the "
      "Washington Monument to become the tallest man-made structure in the world, a title it held for 41 years.";
  auto const& m = loaded().model;
  auto ids = loaded().tokenizer.encode(text, {.add_special = false});
  REQUIRE(ids.size() >= 64);
  ids.resize(64);
  std::vector<layer_gradients> layers(static_cast<std::size_t>(m.config().layers));
  double const found = m.loss_and_gradients(ids, [&](int layer, kv_gradients const& it) {
    layers[static_cast<std::size_t>(layer)] = {to_real(it.dk_pre_rope), to_real(it.dk_post_rope), to_real(it.dv)};
  });
  CHECK(found == Approx(loss(ids, nullptr)).epsilon(1e-6));
  struct {
    char const* name;
    function_hook::change function_hook::*place;
    real_matrix layer_gradients::*gradient;
  } const sides[] = {{"keys", &function_hook::on_keys, &layer_gradients::dk},
                     {"rotated keys", &function_hook::on_rotated_keys, &layer_gradients::dk_rotated},
                     {"values", &function_hook::on_values, &layer_gradients::dv}};
  for (int const layer : {0, m.config().layers / 2, m.config().layers - 1})
    for (auto const& [name, place, gradient] : sides) {
      real_matrix const& g = layers[static_cast<std::size_t>(layer)].*gradient;
      double const norm = g.norm();
      INFO(name << " of layer " << layer);
      // Shorter steps drown in single precision (0.4 % at 0.003), longer ones in curvature (5 % at 0.1, values of layer
      // 0).
      CHECK(slope(ids, place, layer, g / norm, 0.03) == Approx(norm).epsilon(5e-3));
    }
}

}  // namespace
}  // namespace kvquant::runtime
