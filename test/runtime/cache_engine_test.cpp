#include "runtime/cache_engine.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu/generic/backend.hpp"
#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/core/half.hpp"
#include "test/runtime/model_artifact.hpp"
#include "test/support/containers.hpp"
#include "test/support/thrown.hpp"

namespace kvquant::runtime {
namespace {

using test::artifact_of;
using test::forward_in_chunks;
using test::model_pair;
using test::random_ids;
using test::relative_error;
using test::tiny_model;

using nuq3 = spec<nuq<3>, nuq<3>>;

/// Of single precision, once keys and values are the same to the last bit of binary16 but for a few.
constexpr double tolerance = 1e-4;

/// Keys before RoPE and values become binary16.
test::function_hook half_hook() {
  auto const round = [](int, view2d<float> x) {
    for (std::size_t row = 0; row < x.rows; ++row)
      for (float& value : x.row(row)) value = round_to_half(value);
  };
  test::function_hook hook;
  hook.on_keys = hook.on_values = round;
  return hook;
}

/// An artifact in a file, for the model of a file.
template <Spec S>
struct stored_artifact {
  test::temporary_folder folder;
  std::filesystem::path path = folder / "tiny.kvq";

  explicit stored_artifact(artifact<S> it) { save(it, path); }
  explicit stored_artifact(model_pair const& it) : stored_artifact(artifact_of<S>(it)) {}
};

std::unique_ptr<engine> cache_for(std::filesystem::path const& path, model_pair const& it,
                                  cache_options const& options = {.max_tokens = 512}) {
  return make_cache(path, "cpu-generic", it.model.config(), it.gguf.file().hash(), options);
}

std::size_t f16_bytes_per_token(model_config const& of) {
  return 2 * sizeof(half) * static_cast<std::size_t>(of.layers) * static_cast<std::size_t>(of.kv_channels());
}

TEST_CASE("an exact cache gives the hidden states of a window whose keys and values are binary16") {
  tiny_model shape{.architecture = GENERATE("llama", "qwen2"), .seed = 21};
  std::size_t const tokens = GENERATE(as<std::size_t>(), 1, 64, 65, 300);
  SECTION("plain") {}
  SECTION("rotary embeddings of a few channels, scaled") {
    shape.rotary_dim = 8;
    shape.rope_linear_factor = 2.5;
    shape.rope_factors = true;
  }
  model_pair const it(shape);
  auto const ids = random_ids(tokens, tiny_model::vocabulary, 21);
  auto hook = half_hook();
  auto const cache = make_exact_cache(it.model.config(), it.gguf.file().hash(), tokens);
  auto const sequence = cache->open(tokens);
  matrix const hidden = forward(it.model, ids, *sequence);
  INFO(shape.architecture << ", " << tokens << " tokens");
  CHECK(relative_error(hidden, it.model.forward(ids, &hook)) < tolerance);
  CHECK(relative_error(hidden, it.model.forward(ids)) < 1e-2);
  CHECK(sequence->tokens() == tokens);
  auto const bytes = sequence->bytes();
  CHECK(bytes.codes == tokens / page_tokens * page_tokens * f16_bytes_per_token(it.model.config()));
  CHECK(bytes.codes + bytes.tail == tokens * f16_bytes_per_token(it.model.config()));
  CHECK(bytes.value_ranges + bytes.slots + bytes.padding + bytes.sinks == 0);
}

TEST_CASE("an exact cache serves as many tokens as it was made for, token by token") {
  model_pair const it({.seed = 22});
  std::size_t const tokens = GENERATE(as<std::size_t>(), 63, 64, 128, 129);
  auto const ids = random_ids(tokens, tiny_model::vocabulary, 22);
  auto const cache = make_exact_cache(it.model.config(), it.gguf.file().hash(), tokens);
  auto hook = half_hook();
  CHECK(relative_error(forward_in_chunks(it.model, ids, *cache->open(), 1), it.model.forward(ids, &hook)) < tolerance);
}

TEST_CASE("tokens of a packed cache come to the same at once, in chunks and one by one") {
  model_pair const it({.architecture = GENERATE("llama", "qwen2"), .seed = 23});
  stored_artifact<nuq3> const file(it);
  cache_options const options{.max_tokens = 512, .recent_pages = GENERATE(0, 1)};
  auto const ids = random_ids(210, tiny_model::vocabulary, 23);
  auto const cache = cache_for(file.path, it, options);
  auto const run = [&](std::size_t chunk) {
    auto const sequence = cache->open(ids.size());
    matrix hidden = forward_in_chunks(it.model, ids, *sequence, chunk);
    return std::pair(std::move(hidden), sequence->bytes());
  };
  auto const [one_by_one, bytes] = run(1);
  CHECK(bytes.codes > 0);
  for (std::size_t const chunk : {7u, 64u, 65u, 210u}) {
    INFO("chunks of " << chunk);
    auto const [hidden, chunk_bytes] = run(chunk);
    // A code may fall to the other side of a boundary.
    CHECK(relative_error(hidden, one_by_one) < 1e-3);
    CHECK(chunk_bytes.total() == bytes.total());
  }
  CHECK(relative_error(one_by_one, it.model.forward(ids)) > 1e-2);
}

TEST_CASE("more exact pages and more bits bring a packed cache closer to the exact one") {
  model_pair const it({.seed = 24});
  auto const ids = random_ids(200, tiny_model::vocabulary, 24);
  matrix const exact = it.model.forward(ids);
  auto const error_of = [&](auto const& file, int recent_pages) {
    auto const cache = cache_for(file.path, it, {.max_tokens = 512, .recent_pages = recent_pages});
    return relative_error(forward(it.model, ids, *cache->open()), exact);
  };
  stored_artifact<spec<nuq<2>, nuq<2>>> const two(it);
  stored_artifact<spec<nuq<4>, nuq<4>>> const four(it);
  double const of_two = error_of(two, 0), of_four = error_of(four, 0);
  CHECK(of_four < of_two / 2);
  CHECK(error_of(two, 1) < of_two);
  CHECK(error_of(two, 3) < 1e-2);  // nothing is sealed
}

/// A model that attends to the latest 40 tokens alone.
struct sliding_model {
  static constexpr std::size_t reach = 40;

  test::memory_gguf gguf;
  inline_executor executor = {};
  runtime::model model;

  explicit sliding_model(tiny_model const& shape)
      : gguf(shape.writer().set(shape.architecture + ".attention.sliding_window", std::uint32_t{reach})),
        model(gguf.file(), executor) {}
};

TEST_CASE("with sliding-window attention a token sees the latest ones alone") {
  tiny_model const shape{.architecture = GENERATE("llama", "qwen2"), .layers = 1, .seed = 25};
  sliding_model const sliding(shape);
  model_pair const it(shape);
  auto const ids = random_ids(130, tiny_model::vocabulary, 25);
  auto const cache = make_exact_cache(sliding.model.config(), sliding.gguf.file().hash(), ids.size());
  auto const hidden = forward_in_chunks(sliding.model, ids, *cache->open(), GENERATE(as<std::size_t>(), 1, 130));
  // In a single layer a token knows no more than those it sees, and where they stand relative to it.
  for (std::size_t const at : {0u, 38u, 39u, 40u, 63u, 64u, 129u}) {
    INFO("token " << at);
    std::size_t const first = at + 1 - std::min(at + 1, sliding_model::reach);
    matrix const window = it.model.forward(std::span(ids).subspan(first, at + 1 - first));
    matrix const found = hidden.row(static_cast<Eigen::Index>(at)), expected = window.bottomRows(1);
    CHECK(relative_error(found, expected) < 1e-2);
  }
  CHECK(relative_error(hidden, it.model.forward(ids)) > 5e-2);
}

TEST_CASE("sliding-window attention works through packed pages") {
  sliding_model const sliding({.seed = 26});
  auto const made = artifact_of<nuq3>(sliding.model, sliding.gguf.file().hash());
  auto const cache = make_engine<cpu::generic::backend>(made, {.max_tokens = 512});
  auto const ids = random_ids(200, tiny_model::vocabulary, 26);
  matrix const hidden = forward(sliding.model, ids, *cache->open());
  CHECK(relative_error(forward_in_chunks(sliding.model, ids, *cache->open(), 1), hidden) < 1e-3);
  auto const exact = make_exact_cache(sliding.model.config(), sliding.gguf.file().hash(), ids.size());
  CHECK(relative_error(forward(sliding.model, ids, *exact->open()), hidden) < 0.5);
  CHECK(relative_error(hidden, sliding.model.forward(ids)) < 0.5);
}

TEST_CASE("layers with a window, a rotation and norms of their own come to the same through an exact cache") {
  model_pair const it({.architecture = "gemma3", .layers = 4, .window = GENERATE(1, 50, 128), .seed = 36});
  auto const ids = random_ids(300, tiny_model::vocabulary, 36);
  auto hook = half_hook();
  matrix const expected = it.model.forward(ids, &hook);
  for (std::string_view const backend : {"cpu", "cpu-generic"}) {
    auto const cache = make_exact_cache(it.model.config(), it.gguf.file().hash(), 300, backend);
    for (std::size_t const chunk : {1u, 70u, 300u}) {
      INFO(backend << ", window " << it.shape.window << ", chunks of " << chunk);
      // Normed keys make sharp scores, in which a last bit of binary16 shows more.
      CHECK(relative_error(forward_in_chunks(it.model, ids, *cache->open(), chunk), expected) < 10 * tolerance);
    }
  }
}

TEST_CASE("an artifact of a model without its windows is refused") {
  sliding_model const sliding({.seed = 37});
  auto made = artifact_of<nuq3>(sliding.model, sliding.gguf.file().hash());
  made.info.shape.local = {};
  stored_artifact<nuq3> const file(std::move(made));
  auto const found = test::error_of([&] {
    make_cache(file.path, "cpu-generic", sliding.model.config(), sliding.gguf.file().hash(), {.max_tokens = 64});
  });
  CHECK(found.code == errc::bad_format);
  CHECK_THAT(found.text, test::says("(2 layers, 2 of them with a window of 40 tokens, 2 KV heads x 16"));
}

TEST_CASE("an attention function is given what hooks see before RoPE, layer by layer") {
  model_pair const it({.architecture = GENERATE("llama", "qwen2"), .layers = 3, .seed = 27});
  auto const ids = random_ids(100, tiny_model::vocabulary, 27);
  std::vector<test::real_matrix> expected, found;
  auto const note = [&](int, view2d<float> x) { expected.push_back(test::to_real(x)); };
  auto hook = half_hook();
  auto const round = hook.on_keys;
  hook.on_queries = note;
  hook.on_keys = hook.on_values = [&](int layer, view2d<float> x) {
    note(layer, x);
    round(layer, x);
  };
  matrix const hidden = it.model.forward(ids, &hook);

  auto const cache = make_exact_cache(it.model.config(), it.gguf.file().hash(), ids.size());
  auto const sequence = cache->open();
  std::vector<int> layers;
  matrix const attended = it.model.forward(
      ids, [&](int layer, view2d<float const> q, view2d<float const> k, view2d<float const> v, view2d<float> out) {
        layers.push_back(layer);
        for (view2d<float const> const& x : {q, k, v}) found.push_back(test::to_real(x));
        sequence->append_and_attend(layer, k, v, q, out, {}, it.model.executor());
      });
  CHECK(layers == std::vector{0, 1, 2});
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) CHECK(relative_error(found[i], expected[i]) < tolerance);
  CHECK(relative_error(attended, hidden) < tolerance);
}

TEST_CASE("tokens that a model does not have reach no sequence") {
  model_pair const it({.seed = 28});
  auto const cache = make_exact_cache(it.model.config(), it.gguf.file().hash(), 100);
  auto const sequence = cache->open();
  auto const refusal = [&](std::vector<token_id> const& ids) {
    return test::error_of([&] { forward(it.model, ids, *sequence); });
  };
  CHECK_THAT(refusal({}).text, test::says("no tokens"));
  CHECK_THAT(refusal({3, 256}).text, test::says("token 1 is 256, expected 0 to 255"));
  CHECK(refusal({-1}).code == errc::bad_value);
  CHECK(sequence->tokens() == 0);
}

TEST_CASE("an artifact of another model is refused with the file and both models") {
  model_pair const it({.seed = 29}), other({.architecture = "qwen2", .seed = 30});
  stored_artifact<nuq3> const file(it);
  auto const found = test::error_of([&] { cache_for(file.path, other); });
  CHECK(found.code == errc::bad_format);
  CHECK_THAT(found.text, test::says(file.path.string()) && test::says("\"tiny llama\"") &&
                             test::says("\"tiny qwen2\"") && test::says(it.gguf.file().hash()) &&
                             test::says(other.gguf.file().hash()));
}

TEST_CASE("a sequence of an exact cache belongs to its model") {
  model_pair const it({.seed = 33}), other({.seed = 34});
  test::temporary_folder const folder;
  auto const exact = [](model_pair const& of) {
    return make_exact_cache(of.model.config(), of.gguf.file().hash(), 512, "cpu-generic");
  };
  auto const ids = random_ids(100, tiny_model::vocabulary, 33);
  auto const first = exact(it), second = exact(it), foreign = exact(other);
  auto const sequence = first->open();
  forward(it.model, ids, *sequence);
  sequence->save(folder / "x.kvs");
  auto const back = second->load(folder / "x.kvs");
  auto const next = std::array<token_id, 1>{7};
  CHECK(relative_error(forward(it.model, next, *back), forward(it.model, next, *sequence)) == 0);

  auto const found = test::error_of([&] { foreign->load(folder / "x.kvs"); });
  CHECK(found.code == errc::bad_format);
  CHECK_THAT(found.text, test::says("the model's hash") && test::says(it.gguf.file().hash()) &&
                             test::says(other.gguf.file().hash()));
}

/// That `name` makes a cache, or refuses by its name what the tiny model needs: a device's backend has fewer head
/// sizes than the CPU's, and a machine may be without the device.
void check_makes_or_refuses(std::string_view name, stored_artifact<nuq3> const& file, model_pair const& it) {
  INFO(name);
  try {
    auto const made = make_cache(file.path, name, it.model.config(), it.gguf.file().hash(), {});
    CHECK(made->backend() == name);
  } catch (error const& refusal) {
    CHECK(refusal.code == errc::unsupported);
    CHECK_THAT(refusal.what(), Catch::Matchers::StartsWith(std::string(name) + ": "));
    CHECK_FALSE(name.starts_with("cpu"));
  }
}

TEST_CASE("an unknown backend is refused with those that there are") {
  model_pair const it({.seed = 31});
  stored_artifact<nuq3> const file(it);
  auto const found = test::error_of(
      [&] { make_cache(file.path, "abacus", it.model.config(), it.gguf.file().hash(), {.max_tokens = 64}); });
  CHECK(found.code == errc::unsupported);
  CHECK_THAT(found.text, test::says("\"abacus\""));
  for (std::string_view const name : backend_names()) {
    CHECK_THAT(found.text, test::says(std::string(name)));
    check_makes_or_refuses(name, file, it);
  }
}

TEST_CASE("what a backend cannot store is refused by name") {
  model_pair const it({.seed = 32});
  auto const mixed = artifact_of<spec<passthrough, nuq<3>>>(it);
  auto const one_exact_side = test::error_of([&] { make_engine<cpu::generic::backend>(mixed, {.max_tokens = 512}); });
  CHECK(one_exact_side.code == errc::unsupported);
  CHECK_THAT(one_exact_side.text, test::says("cpu-generic") && test::says("f16/nuq3") &&
                                      test::says("codes of 1 to 8 bits, or f16 on both sides"));

  auto rotated = artifact_of<nuq3>(it);
  rotated.info.keys = key_space::post_rope;
  stored_artifact<nuq3> const after(std::move(rotated));
  auto const post_rope = test::error_of([&] { cache_for(after.path, it); });
  CHECK(post_rope.code == errc::unsupported);
  CHECK_THAT(post_rope.text, test::says("cpu-generic") && test::says("keys quantized after RoPE"));
}

TEST_CASE("a file that is not there is refused by name") {
  model_pair const it({.seed = 33});
  auto const found = test::error_of([&] { cache_for("absent.kvq", it); });
  CHECK(found.code == errc::bad_file);
  CHECK_THAT(found.text, test::says("absent.kvq"));
}

}  // namespace
}  // namespace kvquant::runtime
