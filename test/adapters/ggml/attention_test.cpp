#include "adapters/ggml/attention.hpp"

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engines/engines.hpp"
#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "test/support/containers.hpp"
#include "test/support/hand_made_artifact.hpp"
#include "test/support/random_matrix.hpp"
#include "test/support/thrown.hpp"

namespace kvquant {
namespace {

using test::float_matrix;

/// Memory of a graph, its tensors and their values.
class graph_memory {
 public:
  graph_memory() : context_(ggml_init({std::size_t{48} << 20, nullptr, false}), ggml_free) {}
  operator ggml_context*() const { return context_.get(); }

  /// Rows of `heads` · `head_dim`, as [head_dim, heads, rows].
  ggml_tensor* tokens(view2d<float const> x, int head_dim) const {
    auto* const it = ggml_new_tensor_3d(*this, GGML_TYPE_F32, head_dim, static_cast<std::int64_t>(x.cols) / head_dim,
                                        static_cast<std::int64_t>(x.rows));
    for (std::size_t row = 0; row < x.rows; ++row)
      std::memcpy(static_cast<float*>(it->data) + row * x.cols, x.row(row).data(), x.cols * sizeof(float));
    return it;
  }
  void compute(std::vector<ggml_tensor*> const& results, int threads) const {
    auto* const graph = ggml_new_graph(*this);
    for (ggml_tensor* const it : results) ggml_build_forward_expand(graph, it);
    REQUIRE(ggml_graph_compute_with_ctx(*this, graph, threads) == GGML_STATUS_SUCCESS);
  }

 private:
  std::unique_ptr<ggml_context, decltype(&ggml_free)> context_;
};

std::vector<float> values_of(ggml_tensor const* it) {
  auto const* const data = static_cast<float const*>(it->data);
  return {data, data + ggml_nelements(it)};
}

bool all_zero(std::vector<float> const& x) {
  return std::all_of(x.begin(), x.end(), [](float value) { return value == 0; });
}

/// A model's RoPE as ours and as arguments of `ggml_rope_ext`.
struct rope_case {
  char const* what;
  int mode;
  rope_config ours;
  float scale = 1, extrapolation = 0;
};

std::vector<rope_case> rope_cases() {
  std::vector<float> factors(32);
  for (std::size_t i = 0; i < factors.size(); ++i) factors[i] = 1 + 0.2f * static_cast<float>(i);
  auto const yarn = rope_scaling::yarn;
  return {{"normal", GGML_ROPE_TYPE_NORMAL, {.pairing = rope_pairing::interleaved}},
          {"neox", GGML_ROPE_TYPE_NEOX, {.pairing = rope_pairing::half_split, .theta = 5e5}},
          {"neox, half of the head", GGML_ROPE_TYPE_NEOX, {.rotary_dim = 32}},
          {"normal, linear",
           GGML_ROPE_TYPE_NORMAL,
           {.pairing = rope_pairing::interleaved, .scaling = rope_scaling::linear, .factor = 4},
           0.25f},
          {"neox, factors", GGML_ROPE_TYPE_NEOX, {.frequency_factors = factors}},
          {"neox, yarn", GGML_ROPE_TYPE_NEOX, {.scaling = yarn, .factor = 8, .original_context = 64}, 0.125f, 1}};
}

ggml_tensor* rotated(graph_memory const& graph, ggml_tensor* x, rope_case const& as) {
  auto* const positions = ggml_new_tensor_1d(graph, GGML_TYPE_I32, x->ne[2]);
  auto* const position = static_cast<std::int32_t*>(positions->data);
  std::iota(position, position + x->ne[2], 0);
  ggml_tensor* factors = nullptr;
  if (auto const& ours = as.ours.frequency_factors; !ours.empty()) {
    factors = ggml_new_tensor_1d(graph, GGML_TYPE_F32, static_cast<std::int64_t>(ours.size()));
    std::memcpy(factors->data, ours.data(), ours.size() * sizeof(float));
  }
  int const dims = as.ours.rotary_dim == 0 ? static_cast<int>(x->ne[0]) : as.ours.rotary_dim;
  return ggml_rope_ext(graph, x, positions, factors, dims, as.mode, as.ours.original_context,
                       static_cast<float>(as.ours.theta), as.scale, as.extrapolation, 1, 32, 1);
}

/// ggml's own causal attention of all tokens: RoPE, products, softmax.
ggml_tensor* ggml_attention(graph_memory const& graph, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                            rope_case const& as) {
  std::int64_t const tokens = q->ne[2];
  auto* const mask = ggml_new_tensor_2d(graph, GGML_TYPE_F32, tokens, tokens);
  for (std::int64_t i = 0; i < tokens; ++i)
    for (std::int64_t j = 0; j < tokens; ++j)
      static_cast<float*>(mask->data)[i * tokens + j] = j <= i ? 0 : -std::numeric_limits<float>::infinity();
  auto* const scores = ggml_mul_mat(graph, ggml_permute(graph, rotated(graph, k, as), 0, 2, 1, 3),
                                    ggml_permute(graph, rotated(graph, q, as), 0, 2, 1, 3));
  auto* const weights = ggml_soft_max_ext(graph, scores, mask, 1 / std::sqrt(static_cast<float>(q->ne[0])), 0);
  auto* const out = ggml_mul_mat(graph, ggml_cont(graph, ggml_permute(graph, v, 1, 2, 0, 3)), weights);
  return ggml_cont(graph, ggml_permute(graph, out, 0, 2, 1, 3));
}

/// Queries, keys and values of every layer, [layers][tokens, channels].
struct token_stream {
  std::vector<float_matrix> q, k, v;

  token_stream(model_shape const& shape, std::size_t tokens, unsigned seed) {
    auto const channels = static_cast<std::size_t>(shape.kv_channels());
    auto const q_channels = static_cast<std::size_t>(shape.q_heads * shape.head_dim);
    for (int layer = 0; layer < shape.layers; ++layer) {
      q.push_back(test::random_normal(tokens, q_channels, seed++));
      k.push_back(test::random_normal(tokens, channels, seed++));
      v.push_back(test::random_normal(tokens, channels, seed++));
    }
  }
};

struct stretch {
  token_stream const& of;
  std::size_t first, count;
};

/// A graph of all layers over stretches of streams, one after another; computes it and gives the layers' results.
std::vector<std::vector<float>> computed(ggml::attention& attention, model_shape const& shape,
                                         std::vector<stretch> const& inputs, int threads) {
  graph_memory const graph;
  auto const joined = [&](std::vector<float_matrix> token_stream::*side, int layer) {
    auto const at = static_cast<std::size_t>(layer);
    std::size_t const cols = (inputs.front().of.*side)[at].cols;
    float_matrix all(0, cols);
    for (stretch const& it : inputs) {
      auto const rows = (it.of.*side)[at].view().middle_rows(it.first, it.count);
      all.values.insert(all.values.end(), rows.data, rows.data + rows.rows * cols);
      all.rows += it.count;
    }
    return graph.tokens(all.view(), shape.head_dim);
  };
  std::vector<ggml_tensor*> results;
  for (int layer = 0; layer < shape.layers; ++layer)
    results.push_back(attention.node(graph, layer, joined(&token_stream::q, layer), joined(&token_stream::k, layer),
                                     joined(&token_stream::v, layer)));
  graph.compute(results, threads);
  std::vector<std::vector<float>> all;
  for (ggml_tensor const* const it : results) all.push_back(values_of(it));
  return all;
}

double relative_error(std::vector<float> const& found, std::vector<float> const& expected) {
  REQUIRE(found.size() == expected.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    difference += std::pow(found[i] - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return std::sqrt(difference / size);
}

TEST_CASE("attention over a cache in f16 is ggml's own, whatever the RoPE") {
  auto const as = GENERATE(from_range(rope_cases()));
  int const kv_heads = GENERATE(4, 2, 1);
  INFO(as.what << ", " << kv_heads << " KV heads");
  model_shape const shape{.layers = 1, .q_heads = 4, .kv_heads = kv_heads, .head_dim = 64, .rope = as.ours};
  constexpr std::size_t tokens = 134, prompt = 130;  // two pages are sealed
  token_stream const stream(shape, tokens, 3);

  graph_memory const theirs;
  auto const input = [&](std::vector<float_matrix> const& x) { return theirs.tokens(x[0].view(), shape.head_dim); };
  auto* const expected = ggml_attention(theirs, input(stream.q), input(stream.k), input(stream.v), as);
  theirs.compute({expected}, 1);

  auto const cache = make_engine("cpu-generic", make_passthrough_artifact(shape), {.max_tokens = 256});
  auto const sequence = cache->open();
  ggml::attention attention(*cache);
  std::vector<float> found;
  for (std::size_t first = 0; first < tokens;) {
    std::size_t const count = first < prompt ? prompt : 1;
    attention.begin(std::array{ggml::batch_part{sequence.get(), count}});
    auto const out = computed(attention, shape, {{stream, first, count}}, 1);
    attention.finish();
    found.insert(found.end(), out[0].begin(), out[0].end());
    first += count;
  }
  CHECK(relative_error(found, values_of(expected)) < 1e-3);  // keys and values are rounded to binary16
}

/// A cache of two layers in 3 bits.
struct quantized {
  model_shape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  token_stream mine{shape, 200, 11}, others{shape, 200, 50};
  std::unique_ptr<engine> cache;

  explicit quantized(std::string_view backend = "cpu-generic", std::size_t max_tokens = 1024) {
    using S = spec<nuq<3>, nuq<3>>;
    test::temporary_folder const folder;
    auto artifact = test::hand_made_artifact<S>({.shape = shape}, mine.k);
    save(artifact, folder / "a.kvq");
    cache = make_engine(backend, folder / "a.kvq", {.max_tokens = max_tokens});
  }
  std::size_t q_channels() const { return static_cast<std::size_t>(shape.q_heads * shape.head_dim); }

  /// What the engine itself gives for tokens of a stream, by layers.
  std::vector<std::vector<float>> append_and_attend(engine_sequence& to, stretch const& tokens) const {
    std::vector<std::vector<float>> all;
    inline_executor here;
    for (std::size_t layer = 0; layer < 2; ++layer) {
      auto const rows = [&](float_matrix const& x) { return x.view().middle_rows(tokens.first, tokens.count); };
      float_matrix out(tokens.count, q_channels());
      to.append_and_attend(static_cast<int>(layer), rows(tokens.of.k[layer]), rows(tokens.of.v[layer]),
                           rows(tokens.of.q[layer]), out.view(), {}, here);
      all.push_back(out.values);
    }
    return all;
  }
};

TEST_CASE("the operator is the engine, for prompts and steps of two sequences, on any number of threads") {
  quantized const model(GENERATE("cpu-generic", "cpu"));
  int const threads = GENERATE(1, 2, 3);
  ggml::attention attention(*model.cache);
  auto const a = model.cache->open(), b = model.cache->open();
  auto const plain_a = model.cache->open(), plain_b = model.cache->open();
  std::size_t at_a = 0, at_b = 0;
  // Tokens of the one and of the other in each batch.
  for (auto const& [of_a, of_b] : {std::pair<std::size_t, std::size_t>{70, 5}, {1, 1}, {1, 60}, {3, 1}, {1, 1}}) {
    stretch const from_a{model.mine, at_a, of_a}, from_b{model.others, at_b, of_b};
    attention.begin(std::array{ggml::batch_part{a.get(), of_a}, ggml::batch_part{b.get(), of_b}});
    auto const found = computed(attention, model.shape, {from_a, from_b}, threads);
    attention.finish();
    auto expected = model.append_and_attend(*plain_a, from_a);
    auto const expected_b = model.append_and_attend(*plain_b, from_b);
    for (std::size_t layer = 0; layer < 2; ++layer) {
      expected[layer].insert(expected[layer].end(), expected_b[layer].begin(), expected_b[layer].end());
      CHECK((found[layer] == expected[layer]));  // bit for bit
    }
    at_a += of_a, at_b += of_b;
  }
  CHECK(a->tokens() == at_a);
  CHECK(b->tokens() == at_b);
}

TEST_CASE("inputs may be views into one product of weights") {
  quantized const model;
  ggml::attention attention(*model.cache);
  auto const a = model.cache->open(), plain = model.cache->open();
  graph_memory const graph;
  // A token's queries, keys and values side by side.
  std::size_t const tokens = 5, channels = 64 * (4 + 2 + 2);
  float_matrix all(tokens, channels);
  auto* const fused = ggml_new_tensor_2d(graph, GGML_TYPE_F32, static_cast<std::int64_t>(channels), tokens);
  auto const part = [&](int first_head, int heads) {
    return ggml_view_3d(graph, fused, 64, heads, tokens, 64 * sizeof(float), fused->nb[1],
                        static_cast<std::size_t>(first_head) * 64 * sizeof(float));
  };
  for (std::size_t t = 0; t < tokens; ++t) {
    auto* to = static_cast<float*>(fused->data) + t * channels;
    for (auto const* x : {&model.mine.q[0], &model.mine.k[0], &model.mine.v[0]}) {
      std::memcpy(to, x->view().row(t).data(), x->cols * sizeof(float));
      to += x->cols;
    }
  }
  std::vector<ggml_tensor*> const out = {attention.node(graph, 0, part(0, 4), part(4, 2), part(6, 2)),
                                         attention.node(graph, 1, part(0, 4), part(4, 2), part(6, 2))};
  attention.begin(std::array{ggml::batch_part{a.get(), tokens}});
  graph.compute(out, 2);
  attention.finish();
  CHECK((values_of(out[0]) == model.append_and_attend(*plain, {model.mine, 0, tokens})[0]));
}

TEST_CASE("a step of a model in a graph") {
  quantized const model;
  auto const& [shape, mine, others, cache] = model;
  auto const chat = cache->open(), other = cache->open();
  graph_memory const context;
  auto const input = [&](std::vector<float_matrix> const& x, int layer) {
    return context.tokens(x[static_cast<std::size_t>(layer)].view().middle_rows(0, 4), 64);
  };
  std::vector<ggml_tensor*> outputs;
  auto* const graph = ggml_new_graph(context);
  // [doc:graph]
  kvquant::ggml::attention attention(*cache);  // of a kvquant::engine; lives as long as the graphs
  for (int layer = 0; layer < shape.layers; ++layer) {
    ggml_tensor* q = input(mine.q, layer);  // [head_dim, q_heads, tokens], before RoPE as the keys are
    ggml_tensor* k = input(mine.k, layer);  // [head_dim, kv_heads, tokens]
    ggml_tensor* v = input(mine.v, layer);
    outputs.push_back(attention.node(context, layer, q, k, v));  // [head_dim, q_heads, tokens]
    ggml_build_forward_expand(graph, outputs.back());
  }
  // Three tokens of one sequence and one of another. The next step has another batch, and may use the graph again.
  attention.begin(std::array{kvquant::ggml::batch_part{chat.get(), 3}, kvquant::ggml::batch_part{other.get(), 1}});
  ggml_graph_compute_with_ctx(context, graph, 2);
  attention.finish();  // throws what an operator threw
  // [/doc]
  CHECK(chat->tokens() == 3);
  CHECK(other->tokens() == 1);
  attention.begin(std::array{ggml::batch_part{chat.get(), 4}});
  ggml_graph_compute_with_ctx(context, graph, 2);
  attention.finish();
  CHECK(chat->tokens() == 7);
}

TEST_CASE("what does not fit the model is refused when the graph is built") {
  quantized const model;
  ggml::attention attention(*model.cache);
  graph_memory const graph;
  auto const f32 = [&](std::int64_t d, std::int64_t heads, std::int64_t tokens) {
    return ggml_new_tensor_3d(graph, GGML_TYPE_F32, d, heads, tokens);
  };
  auto* const q = f32(64, 4, 5);
  auto* const k = f32(64, 2, 5);
  auto const complaint = [&](int layer, ggml_tensor* a, ggml_tensor* b, ggml_tensor* c) {
    auto const it = test::error_of([&] { attention.node(graph, layer, a, b, c); });
    CHECK(it.code == (layer == 0 ? errc::bad_shape : errc::bad_value));
    return it.text;
  };
  CHECK_THAT(complaint(2, q, k, k), test::says("layer 2, expected 0 to 1"));
  CHECK_THAT(complaint(-1, q, k, k), test::says("layer -1"));
  CHECK_THAT(complaint(0, f32(64, 2, 5), k, k), test::says("q is f32 [64, 2, 5, 1]"));
  CHECK_THAT(complaint(0, q, k, f32(32, 4, 5)), test::says("v is f32 [32, 4, 5, 1]"));
  CHECK_THAT(complaint(0, q, f32(64, 2, 4), k), test::says("expected f32 [64, 2, 5, 1]"));
  CHECK_THAT(complaint(0, q, nullptr, k), test::says("there is no k"));
  CHECK_THAT(complaint(0, nullptr, k, k), test::says("there is no q"));
  CHECK_THAT(complaint(0, q, ggml_new_tensor_3d(graph, GGML_TYPE_F16, 64, 2, 5), k),
             test::says("k is f16 [64, 2, 5, 1]"));
  auto* const across = ggml_permute(graph, f32(64, 5, 2), 0, 2, 1, 3);
  CHECK_THAT(complaint(0, q, across, k), test::says("with strides of 4, 1280, 256 bytes"));
}

TEST_CASE("a batch names each sequence once, with its tokens") {
  quantized const model;
  ggml::attention attention(*model.cache);
  auto const a = model.cache->open();
  auto const complaint = [&](std::vector<ggml::batch_part> const& batch) {
    return test::error_of([&] { attention.begin(batch); }).text;
  };
  CHECK_THAT(complaint({{nullptr, 1}}), test::says("1 tokens of no sequence"));
  CHECK_THAT(complaint({{a.get(), 0}}), test::says("0 tokens of a sequence"));
  CHECK_THAT(complaint({{a.get(), 1}, {a.get(), 1}}), test::says("part 1 of the batch is of a sequence that came"));
}

TEST_CASE("what fails in a graph is thrown after it, and the sequences are as before") {
  quantized model("cpu-generic", 64);
  ggml::attention attention(*model.cache);
  auto const a = model.cache->open(), b = model.cache->open(), plain = model.cache->open();
  auto const step = [&](std::size_t of_a, std::size_t of_b, std::size_t computed_tokens) {
    attention.begin(std::array{ggml::batch_part{a.get(), of_a}, ggml::batch_part{b.get(), of_b}});
    auto out = computed(attention, model.shape, {{model.mine, a->tokens(), computed_tokens}}, 3);
    return out;
  };
  auto const finish = [&] { attention.finish(); };
  step(5, 1, 6);
  finish();

  SECTION("a number that is none, in the second layer") {
    model.mine.k[1](7, 3) = std::numeric_limits<float>::quiet_NaN();
    auto const out = step(4, 1, 5);
    CHECK(!all_zero(out[0]));
    CHECK(all_zero(out[1]));
    auto const complaint = test::error_of(finish);
    CHECK(complaint.code == errc::bad_value);
    CHECK_THAT(complaint.text, test::says("nan"));
  }
  SECTION("no page is left: the first layer fails, the second does nothing") {
    auto const out = step(190, 1, 191);
    CHECK(all_zero(out[0]));
    CHECK(all_zero(out[1]));
    CHECK(test::error_of(finish).code == errc::out_of_pages);
  }
  SECTION("a batch of more tokens than the graph") {
    step(5, 5, 7);
    CHECK_THAT(test::error_of(finish).text, test::says("layer 0 computes 7 tokens, expected the 10"));
  }
  SECTION("a graph that was not computed") {
    attention.begin(std::array{ggml::batch_part{a.get(), 1}});
    CHECK_THAT(test::error_of(finish).text, test::says("layer 0 was not computed"));
  }
  SECTION("a graph that was computed twice") {
    step(1, 1, 2);
    computed(attention, model.shape, {{model.mine, 6, 2}}, 1);
    CHECK_THAT(test::error_of(finish).text, test::says("layer 0 was computed twice"));
  }
  CHECK(a->tokens() == 5);
  CHECK(b->tokens() == 1);
  model.mine = token_stream(model.shape, 200, 11);
  model.append_and_attend(*plain, {model.mine, 0, 5});  // and the next step is as if nothing had been
  auto const out = step(3, 1, 4);
  finish();
  auto const expected = model.append_and_attend(*plain, {model.mine, 5, 3});
  CHECK(std::equal(expected[1].begin(), expected[1].end(), out[1].begin()));
}

TEST_CASE("a sequence that cannot be cut back says so, with what failed before") {
  model_shape shape{.layers = 2, .q_heads = 2, .kv_heads = 1, .head_dim = 64};
  shape.local = {.layers = {0}, .window = 32};
  auto const cache =
      make_engine("cpu-generic", make_passthrough_artifact(shape), {.max_tokens = 512, .rewind_tokens = 0});
  auto const a = cache->open();
  ggml::attention attention(*cache);
  token_stream stream(shape, 400, 1);
  attention.begin(std::array{ggml::batch_part{a.get(), 100}});
  computed(attention, shape, {{stream, 0, 100}}, 1);
  attention.finish();
  stream.v[1](350, 0) = std::numeric_limits<float>::infinity();
  attention.begin(std::array{ggml::batch_part{a.get(), 300}});
  computed(attention, shape, {{stream, 100, 300}}, 1);
  try {
    attention.finish();
    FAIL("nothing was thrown");
  } catch (error const& outer) {
    CHECK_THAT(outer.what(), test::says("truncate: to 100 tokens"));
    CHECK_THAT(test::error_of([&] { std::rethrow_if_nested(outer); }).text, test::says("inf"));
  }
}

}  // namespace
}  // namespace kvquant
