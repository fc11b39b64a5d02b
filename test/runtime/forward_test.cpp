#include <Eigen/Core>
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "runtime/model.hpp"
#include "test/runtime/model_pair.hpp"

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

/// Of single precision through a few layers whose attention is far from uniform.
constexpr double tolerance = 2e-5;

matrix logits_of(model const& m, matrix const& hidden) {
  matrix out(hidden.rows(), m.config().vocabulary);
  m.logits(view_of(hidden), view_of(out));
  return out;
}

void check_forward(tiny_model const& shape, std::size_t tokens) {
  model_pair const it(shape);
  auto const ids = random_ids(tokens, tiny_model::vocabulary, 3);
  matrix const hidden = it.model.forward(ids);
  real_matrix const expected = it.reference.hidden(ids);
  INFO(shape.architecture << ", " << tokens << " tokens, heads " << shape.q_heads << ", " << shape.kv_heads << " x "
                          << shape.head_dim);
  REQUIRE(hidden.rows() == expected.rows());
  REQUIRE(hidden.cols() == expected.cols());
  CHECK(relative_error(to_real(hidden), expected) < tolerance);
  for (Eigen::Index t = 0; t < hidden.rows(); ++t)
    CHECK(relative_error(real_matrix(to_real(hidden).row(t)), real_matrix(expected.row(t))) < 10 * tolerance);
  CHECK(relative_error(to_real(logits_of(it.model, hidden)), it.reference.logits(expected)) < tolerance);
}

TEST_CASE("hidden states and scores are the reference's at any length") {
  check_forward({.architecture = GENERATE("llama", "qwen2", "gemma3"), .seed = 2},
                GENERATE(as<std::size_t>(), 1, 2, 16, 17, 127, 128, 129, 300));
}

TEST_CASE("hidden states are the reference's for every grouping of heads") {
  tiny_model shape{.architecture = GENERATE("llama", "qwen2", "gemma3"), .seed = 3};
  SECTION("one KV head for each") { shape.q_heads = shape.kv_heads = 4; }
  SECTION("three to one") {
    shape.q_heads = 6;
    shape.kv_heads = 2;
  }
  SECTION("one KV head for all") {
    shape.q_heads = 5;
    shape.kv_heads = 1;
  }
  SECTION("one head") { shape.q_heads = shape.kv_heads = 1; }
  SECTION("narrow heads") { shape.head_dim = shape.rotary_dim = 2; }
  SECTION("heads wider than the model") {
    shape.q_heads = 2;
    shape.kv_heads = 1;
    shape.head_dim = shape.rotary_dim = 80;
  }
  SECTION("one layer") { shape.layers = 1; }
  SECTION("five layers") { shape.layers = 5; }
  check_forward(shape, 70);
}

TEST_CASE("hidden states are the reference's for every rotary embedding") {
  tiny_model shape{.architecture = GENERATE("llama", "qwen2", "gemma3"), .seed = 4};
  SECTION("a quarter of the channels") { shape.rotary_dim = 4; }
  SECTION("all but two channels") { shape.rotary_dim = 14; }
  SECTION("linear scaling") { shape.rope_linear_factor = 4; }
  SECTION("a factor for each frequency") { shape.rope_factors = true; }
  SECTION("another base") { shape.rope_theta = 500000; }
  SECTION("all of it") {
    shape.rotary_dim = 8;
    shape.rope_linear_factor = 2.5;
    shape.rope_factors = true;
  }
  check_forward(shape, 150);
}

TEST_CASE("hidden states and scores are the reference's with tied embeddings") {
  check_forward({.architecture = GENERATE("llama", "qwen2", "gemma3"), .tied_embeddings = true, .seed = 5}, 40);
}

TEST_CASE("hidden states are the reference's for weights of every type") {
  using enum tensor_type;
  auto const type = GENERATE(f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k);
  bool const has_long_blocks = traits(type).block == 256;
  INFO(traits(type).name);
  tiny_model shape{.tied_embeddings = true, .type = type, .seed = 6};
  if (has_long_blocks) {
    shape.layers = 1;
    shape.hidden = shape.feed_forward = 256;
    shape.q_heads = 8;
    shape.head_dim = shape.rotary_dim = 32;
  }
  check_forward(shape, 20);
}

TEST_CASE("biases that are not there are biases of zero") {
  tiny_model const shape{.architecture = GENERATE("llama", "qwen2"), .seed = 7};
  auto without = shape.writer();
  std::erase_if(without.tensors, [](auto const& t) { return t.name.ends_with(".bias"); });
  auto zero = without;
  for (auto const& [name, channels] : {std::pair{"q", 96u}, {"k", 32u}, {"v", 32u}})
    zero.add("blk.1.attn_" + std::string(name) + ".bias", tensor_type::f32, {channels}, std::vector(channels, 0.0f));
  test::memory_gguf const absent(without), present(zero);
  inline_executor executor;
  auto const ids = random_ids(9, tiny_model::vocabulary, 7);
  CHECK(model(absent.file(), executor).forward(ids) == model(present.file(), executor).forward(ids));
}

enum class place { queries, keys, rotated_keys, values };

TEST_CASE("hooks see what the reference has there, layer by layer in the stated order") {
  tiny_model const shape{.architecture = GENERATE("llama", "qwen2", "gemma3"), .layers = 3, .rotary_dim = 8, .seed = 8};
  model_pair const it(shape);
  auto const ids = random_ids(GENERATE(as<std::size_t>(), 1, 130), tiny_model::vocabulary, 8);

  using visit = std::pair<int, place>;
  std::vector<visit> order, expected_order;
  std::vector<real_matrix> found, expected;
  auto const note = [&](place where) {
    return [&, where](int layer, view2d<float> x) {
      order.emplace_back(layer, where);
      found.push_back(to_real(x));
    };
  };
  auto const expect = [&](int, real_matrix& x) { expected.push_back(x); };
  function_hook hook;
  hook.on_queries = note(place::queries);
  hook.on_keys = note(place::keys);
  hook.on_rotated_keys = note(place::rotated_keys);
  hook.on_values = note(place::values);
  matrix const hidden = it.model.forward(ids, &hook);
  it.reference.hidden(ids, {expect, expect, expect, expect});

  for (int layer = 0; layer < 3; ++layer)
    for (place const where : {place::queries, place::keys, place::rotated_keys, place::values})
      expected_order.emplace_back(layer, where);
  CHECK(order == expected_order);
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    REQUIRE(found[i].rows() == expected[i].rows());
    REQUIRE(found[i].cols() == expected[i].cols());
    CHECK(relative_error(found[i], expected[i]) < tolerance);
  }
  CHECK(hidden == it.model.forward(ids));  // to look changes nothing
}

/// A change that differs from layer to layer, token to token and channel to channel.
float disturbance(int layer, Eigen::Index t, Eigen::Index c) {
  return 0.5f * std::sin(static_cast<float>(3 * layer + 5 * t + 7 * c));
}
function_hook::change disturb() {
  return [](int layer, view2d<float> x) {
    for (std::size_t t = 0; t < x.rows; ++t)
      for (std::size_t c = 0; c < x.cols; ++c)
        x(t, c) += disturbance(layer, static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(c));
  };
}
reference_hooks::change disturb_reference() {
  return [](int layer, real_matrix& x) {
    for (Eigen::Index t = 0; t < x.rows(); ++t)
      for (Eigen::Index c = 0; c < x.cols(); ++c) x(t, c) += disturbance(layer, t, c);
  };
}

TEST_CASE("attention reads what hooks wrote") {
  model_pair const it({.architecture = GENERATE("llama", "qwen2", "gemma3"), .rotary_dim = 12, .seed = 9});
  auto const ids = random_ids(135, tiny_model::vocabulary, 9);
  function_hook hook;
  reference_hooks expected;
  SECTION("queries") {
    hook.on_queries = disturb();
    expected.queries_pre_rope = disturb_reference();
  }
  SECTION("keys") {
    hook.on_keys = disturb();
    expected.keys_pre_rope = disturb_reference();
  }
  SECTION("rotated keys") {
    hook.on_rotated_keys = disturb();
    expected.keys_post_rope = disturb_reference();
  }
  SECTION("values") {
    hook.on_values = disturb();
    expected.values = disturb_reference();
  }
  SECTION("everything") {
    hook.on_queries = hook.on_keys = hook.on_rotated_keys = hook.on_values = disturb();
    expected = {disturb_reference(), disturb_reference(), disturb_reference(), disturb_reference()};
  }
  real_matrix const changed = it.reference.hidden(ids, expected);
  CHECK(relative_error(to_real(it.model.forward(ids, &hook)), changed) < tolerance);
  CHECK(relative_error(it.reference.hidden(ids), changed) > 0.01);
}

TEST_CASE("within a window attention reads keys and values as they were before the hooks") {
  model_pair const it({.architecture = GENERATE("llama", "qwen2", "gemma3"), .seed = 10});
  auto const ids = random_ids(GENERATE(as<std::size_t>(), 1, 5, 129, 300), tiny_model::vocabulary, 10);
  auto const last = [](int count) { return [count](int t) { return std::max(0, t + 1 - count); }; };
  auto const steps = [](int step) { return [step](int t) { return (t + 1) / step * step; }; };
  exact_window const window = GENERATE_COPY(exact_window{last(1), last(1)}, exact_window{last(3), last(140)},
                                            exact_window{steps(64), last(128)}, exact_window{steps(7), steps(100)});
  function_hook hook;
  hook.on_keys = hook.on_rotated_keys = hook.on_values = disturb();
  hook.exact = window;
  reference_hooks const expected{{}, disturb_reference(), disturb_reference(), disturb_reference(), window};
  CHECK(relative_error(to_real(it.model.forward(ids, &hook)), it.reference.hidden(ids, expected)) < tolerance);
}

TEST_CASE("a window over everything undoes what hooks do to keys and values, but not to queries") {
  model_pair const it({.seed = 11});
  auto const ids = random_ids(200, tiny_model::vocabulary, 11);
  function_hook hook;
  hook.on_keys = hook.on_rotated_keys = hook.on_values = disturb();
  hook.exact = {[](int) { return 0; }, [](int) { return 0; }};
  real_matrix const plain = to_real(it.model.forward(ids));
  CHECK(relative_error(to_real(it.model.forward(ids, &hook)), plain) < tolerance);
  hook.on_queries = disturb();
  CHECK(relative_error(to_real(it.model.forward(ids, &hook)), plain) > 0.01);
}

TEST_CASE("hidden states have the same bits for any number of threads, and do not depend on later tokens") {
  test::memory_gguf const gguf(tiny_model{.architecture = "qwen2", .type = tensor_type::q4_0, .seed = 12}.writer());
  auto const ids = random_ids(300, tiny_model::vocabulary, 12);
  inline_executor executor;
  model const plain(gguf.file(), executor);
  matrix const expected = plain.forward(ids);
  for (int const threads : {1, 2, 3}) {
    cpu::thread_pool pool(threads);
    CHECK(model(gguf.file(), pool).forward(ids) == expected);
  }
  auto other = ids;
  std::fill(other.begin() + 150, other.end(), 0);
  CHECK(plain.forward(other).topRows(150) == expected.topRows(150));
  CHECK(plain.forward(other).row(150) != expected.row(150));
}

}  // namespace
}  // namespace kvquant::runtime
