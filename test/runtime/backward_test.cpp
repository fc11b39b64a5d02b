#include <Eigen/Core>
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "runtime/model.hpp"
#include "runtime/scoring.hpp"
#include "test/runtime/model_pair.hpp"
#include "test/support/thrown.hpp"

namespace kvquant::runtime {
namespace {

using test::function_hook;
using test::model_pair;
using test::random_ids;
using test::real_matrix;
using test::reference_hooks;
using test::relative_error;
using test::tiny_model;
using test::to_real;

/// What the sink was given.
struct layer_record {
  real_matrix k, k_rotated, v, dk, dk_rotated, dv;
};
struct backward_result {
  double loss = 0;
  std::vector<int> order;
  std::vector<layer_record> layers;
};

backward_result run(model const& m, std::span<token_id const> ids) {
  backward_result result;
  result.layers.resize(static_cast<std::size_t>(m.config().layers));
  result.loss = m.loss_and_gradients(ids, [&](int layer, kv_gradients const& it) {
    result.order.push_back(layer);
    result.layers[static_cast<std::size_t>(layer)] = {
        to_real(it.k_pre_rope),  to_real(it.k_post_rope),  to_real(it.v),
        to_real(it.dk_pre_rope), to_real(it.dk_post_rope), to_real(it.dv)};
  });
  return result;
}

/// The places where a loss can be disturbed.
struct side {
  char const* name;
  reference_hooks::change reference_hooks::*hook;
  function_hook::change function_hook::*float_hook;
  real_matrix layer_record::*gradient;
};
side const sides[] = {
    {"keys", &reference_hooks::keys_pre_rope, &function_hook::on_keys, &layer_record::dk},
    {"rotated keys", &reference_hooks::keys_post_rope, &function_hook::on_rotated_keys, &layer_record::dk_rotated},
    {"values", &reference_hooks::values, &function_hook::on_values, &layer_record::dv},
};

/// The reference's loss with `delta` added on one side of one layer.
double disturbed_loss(model_pair const& it, std::span<token_id const> ids, side const& where, int layer,
                      real_matrix const& delta) {
  reference_hooks hooks;
  hooks.*where.hook = [&](int at, real_matrix& x) {
    if (at == layer) x += delta;
  };
  return it.reference.loss(ids, hooks);
}

/// Derivative of the reference's loss along `direction`.
double slope(model_pair const& it, std::span<token_id const> ids, side const& where, int layer,
             real_matrix const& direction) {
  double const step = 1e-4 / direction.cwiseAbs().maxCoeff();
  return (disturbed_loss(it, ids, where, layer, step * direction) -
          disturbed_loss(it, ids, where, layer, -step * direction)) /
         (2 * step);
}

real_matrix random_direction(Eigen::Index rows, Eigen::Index cols, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  return real_matrix::NullaryExpr(rows, cols, [&] { return normal(random); });
}

TEST_CASE("every element of the gradients is the derivative of the reference's loss") {
  tiny_model shape{.architecture = GENERATE("llama", "qwen2", "gemma3"), .seed = 21};
  shape.q_heads = 3;
  shape.kv_heads = GENERATE(1, 3);
  shape.head_dim = 8;
  shape.rotary_dim = 6;
  model_pair const it(shape);
  auto const ids = random_ids(6, tiny_model::vocabulary, 21);
  auto const found = run(it.model, ids);
  for (int layer = 0; layer < shape.layers; ++layer)
    for (side const& where : sides) {
      real_matrix const& gradient = found.layers[static_cast<std::size_t>(layer)].*where.gradient;
      real_matrix expected(gradient.rows(), gradient.cols()),
          delta = real_matrix::Zero(gradient.rows(), gradient.cols());
      for (Eigen::Index i = 0; i < expected.size(); ++i) {
        delta(i) = 1;
        expected(i) = slope(it, ids, where, layer, delta);
        delta(i) = 0;
      }
      INFO(shape.architecture << ", " << where.name << " of layer " << layer);
      CHECK(relative_error(gradient, expected) < 1e-4);
    }
}

TEST_CASE("gradients are the slopes of the reference's loss, across the blocks of attention and of predictions") {
  tiny_model const shape{.architecture = GENERATE("llama", "qwen2", "gemma3"), .seed = 22};
  model_pair const it(shape);
  auto const ids = random_ids(GENERATE(as<std::size_t>(), 3, 128, 129, 130, 270), tiny_model::vocabulary, 22);
  auto const found = run(it.model, ids);
  CHECK(found.loss == Approx(it.reference.loss(ids)).epsilon(1e-6));
  CHECK(found.order == std::vector{1, 0});
  for (int layer = 0; layer < shape.layers; ++layer)
    for (side const& where : sides) {
      real_matrix const& gradient = found.layers[static_cast<std::size_t>(layer)].*where.gradient;
      REQUIRE(gradient.rows() == static_cast<Eigen::Index>(ids.size()));
      REQUIRE(gradient.cols() == shape.kv_heads * shape.head_dim);
      INFO(shape.architecture << ", " << ids.size() << " tokens, " << where.name << " of layer " << layer);
      real_matrix const random = random_direction(gradient.rows(), gradient.cols(), 22);
      for (real_matrix const& direction :
           {gradient, real_matrix(gradient + gradient.norm() / random.norm() * random)}) {
        double const expected = slope(it, ids, where, layer, direction);
        CHECK(std::abs(gradient.cwiseProduct(direction).sum() - expected) < 1e-3 * gradient.norm() * direction.norm());
      }
    }
}

TEST_CASE("gradients are the reference's for other rotations, tied embeddings and coarse weights") {
  tiny_model shape{.seed = 23};
  SECTION("rotations") {
    shape.rotary_dim = 8;
    shape.rope_linear_factor = 3;
    shape.rope_factors = true;
  }
  SECTION("tied embeddings") { shape.tied_embeddings = true; }
  SECTION("weights of four bits") { shape.type = tensor_type::q4_1; }
  SECTION("one layer") { shape.layers = 1; }
  model_pair const it(shape);
  auto const ids = random_ids(40, tiny_model::vocabulary, 23);
  auto const found = run(it.model, ids);
  CHECK(found.loss == Approx(it.reference.loss(ids)).epsilon(1e-6));
  for (int layer = 0; layer < shape.layers; ++layer)
    for (side const& where : sides) {
      real_matrix const& gradient = found.layers[static_cast<std::size_t>(layer)].*where.gradient;
      CHECK(gradient.squaredNorm() == Approx(slope(it, ids, where, layer, gradient)).epsilon(1e-3));
    }
}

/// The same by the runtime's own forward: its single precision asks for longer steps.
double float_slope(model const& m, std::span<token_id const> ids, side const& where, int layer,
                   real_matrix const& direction, double step) {
  auto const loss = [&](double length) {
    function_hook hook;
    hook.*where.float_hook = [&](int at, view2d<float> x) {
      if (at != layer) return;
      for (std::size_t t = 0; t < x.rows; ++t)
        for (std::size_t c = 0; c < x.cols; ++c)
          x(t, c) += static_cast<float>(length * direction(static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(c)));
    };
    matrix const hidden = m.forward(ids, &hook);
    auto const nll = negative_log_likelihood(m, view_of(hidden).middle_rows(0, ids.size() - 1), ids.subspan(1));
    double sum = 0;
    for (double const it : nll) sum += it;
    return sum / static_cast<double>(nll.size());
  };
  return (loss(step) - loss(-step)) / (2 * step);
}

TEST_CASE("gradients are the slopes of the runtime's own loss") {
  tiny_model const shape{.architecture = GENERATE("llama", "qwen2", "gemma3"), .seed = 24};
  auto writer = shape.writer();
  SECTION("plain") {}
  SECTION("with YaRN, whose attention factor lengthens rotated keys") {
    writer.set(shape.architecture + ".rope.scaling.type", "yarn");
    writer.set(shape.architecture + ".rope.scaling.factor", 16.0f);
    writer.set(shape.architecture + ".rope.scaling.original_context_length", 32u);
  }
  test::memory_gguf const gguf(writer);
  inline_executor executor;
  model const m(gguf.file(), executor);
  auto const ids = random_ids(50, tiny_model::vocabulary, 24);
  auto const found = run(m, ids);
  for (int layer = 0; layer < shape.layers; ++layer)
    for (side const& where : sides) {
      real_matrix const& gradient = found.layers[static_cast<std::size_t>(layer)].*where.gradient;
      double const norm = gradient.norm();
      // Two steps cancel the curvature's second order (Richardson).
      double const near = float_slope(m, ids, where, layer, gradient / norm, 0.02),
                   far = float_slope(m, ids, where, layer, gradient / norm, 0.04);
      INFO(shape.architecture << ", " << where.name << " of layer " << layer);
      CHECK((4 * near - far) / 3 == Approx(norm).epsilon(5e-3));
    }
}

TEST_CASE("keys and values come with the gradients as the hooks of a forward pass see them") {
  model_pair const it({.architecture = GENERATE("llama", "qwen2", "gemma3"), .layers = 3, .rotary_dim = 8, .seed = 25});
  auto const ids = random_ids(130, tiny_model::vocabulary, 25);
  auto const found = run(it.model, ids);
  std::vector<layer_record> expected(3);
  auto const keep = [&](real_matrix layer_record::*member) {
    return [&expected, member](int layer, view2d<float> x) {
      expected[static_cast<std::size_t>(layer)].*member = to_real(x);
    };
  };
  function_hook hook;
  hook.on_keys = keep(&layer_record::k);
  hook.on_rotated_keys = keep(&layer_record::k_rotated);
  hook.on_values = keep(&layer_record::v);
  it.model.forward(ids, &hook);
  for (std::size_t layer = 0; layer < 3; ++layer) {
    CHECK(found.layers[layer].k == expected[layer].k);
    CHECK(found.layers[layer].k_rotated == expected[layer].k_rotated);
    CHECK(found.layers[layer].v == expected[layer].v);
  }
}

TEST_CASE("the last token of a window, whose prediction is not scored, has no gradient in the last layer") {
  model_pair const it({.seed = 26});
  auto const found = run(it.model, random_ids(7, tiny_model::vocabulary, 26));
  CHECK(found.layers.back().dv.row(6).isZero(0));
  CHECK(found.layers.back().dk.row(6).isZero(0));
  CHECK(found.layers.back().dv.row(5).norm() > 1e-6);
}

TEST_CASE("gradients have the same bits for any number of threads") {
  test::memory_gguf const gguf(tiny_model{.type = tensor_type::q8_0, .seed = 27}.writer());
  auto const ids = random_ids(260, tiny_model::vocabulary, 27);
  backward_result first;
  for (int const threads : {1, 2, 3}) {
    cpu::thread_pool pool(threads);
    auto const found = run(model(gguf.file(), pool), ids);
    if (threads == 1) first = found;
    CHECK(found.loss == first.loss);
    for (std::size_t layer = 0; layer < found.layers.size(); ++layer)
      for (side const& where : sides) CHECK(found.layers[layer].*where.gradient == first.layers[layer].*where.gradient);
  }
}

TEST_CASE("a window without predictions is refused") {
  model_pair const it({.seed = 28});
  auto const t = test::error_of([&] { run(it.model, std::vector<token_id>{5}); });
  CHECK(t.code == errc::bad_value);
  CHECK_THAT(t.text, test::says("one token") && test::says("two or more"));
}

}  // namespace
}  // namespace kvquant::runtime
