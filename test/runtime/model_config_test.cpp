#include "runtime/model_config.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "test/support/thrown.hpp"
#include "test/support/tiny_model.hpp"

namespace kvquant::runtime {
namespace {

using test::error_of;
using test::gguf_writer;
using test::memory_gguf;
using test::says;
using test::thrown;
using test::tiny_model;

model_config read(gguf_writer const& writer) { return read_model_config(memory_gguf(writer).file()); }
thrown read_error(gguf_writer const& writer) {
  return error_of([&] { read(writer); });
}

/// A tiny model's metadata with changes.
struct changed {
  gguf_writer writer;

  explicit changed(tiny_model const& shape = {}) : writer(shape.writer()) {}
  changed& without(std::string const& key) {
    std::erase_if(writer.entries, [&](auto const& entry) { return entry.key == key; });
    return *this;
  }
  template <class T>
  changed& with(std::string const& key, T const& value) {
    without(key);
    writer.set(key, value);
    return *this;
  }
};

TEST_CASE("the metadata's numbers") {
  tiny_model const shape{.architecture = GENERATE("llama", "qwen2"),
                         .layers = 3,
                         .hidden = 32,
                         .q_heads = 8,
                         .kv_heads = 4,
                         .head_dim = 24,
                         .feed_forward = 160,
                         .rotary_dim = 10,
                         .rope_theta = 12345,
                         .rope_linear_factor = 2.5,
                         .rope_factors = true};
  auto const config = read(changed(shape).with(shape.architecture + ".attention.sliding_window", 99u).writer);
  CHECK(config.architecture == shape.architecture);
  CHECK(config.name == "tiny " + shape.architecture);
  CHECK(config.layers == 3);
  CHECK(config.hidden == 32);
  CHECK(config.q_heads == 8);
  CHECK(config.kv_heads == 4);
  CHECK(config.head_dim == 24);
  CHECK(config.q_channels() == 192);
  CHECK(config.kv_channels() == 96);
  CHECK(config.feed_forward == 160);
  CHECK(config.vocabulary == 256);
  CHECK(config.context == 512);
  CHECK(config.local.window == 99);
  CHECK(config.local.layers == std::vector{0, 1, 2});
  CHECK(config.local.rope.theta == 12345);
  CHECK(config.local.rope.factor == 2.5);
  CHECK(config.rms_epsilon == 1e-5f);
  CHECK_FALSE(config.tied_embeddings);
  CHECK(config.rope.enabled);
  CHECK(config.rope.pairing == (shape.architecture == "llama" ? rope_pairing::interleaved : rope_pairing::half_split));
  CHECK(config.rope.theta == 12345);
  CHECK(config.rope.rotary_dim == 10);
  CHECK(config.rope.scaling == rope_scaling::linear);
  CHECK(config.rope.factor == 2.5);
  std::vector<float> factors(5);
  memory_gguf const gguf(shape.writer());
  dequantize(tensor_type::f32, gguf.file().tensor("rope_freqs.weight").data, factors);
  CHECK(config.rope.frequency_factors == factors);
}

TEST_CASE("what stands for metadata that is not there") {
  changed it({.hidden = 96, .q_heads = 6, .kv_heads = 6, .head_dim = 16, .tied_embeddings = true});
  for (char const* const key :
       {"general.name", "llama.attention.head_count_kv", "llama.attention.key_length", "llama.attention.value_length",
        "llama.rope.dimension_count", "llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"})
    it.without(key);
  auto const config = read(it.writer);
  CHECK(config.name == "llama");
  CHECK(config.kv_heads == 6);
  CHECK(config.head_dim == 16);
  CHECK(config.rope.rotary_dim == 16);
  CHECK(config.rope.theta == 10000);
  CHECK(config.rope.scaling == rope_scaling::none);
  CHECK(config.rope.frequency_factors.empty());
  CHECK(config.rms_epsilon == 1e-5f);
  CHECK(config.local.layers.empty());
  CHECK(config.softmax_scale == 0);
  CHECK(config.embedding_scale == 1);
  CHECK(config.gate == activation::silu);
  CHECK_FALSE(config.qk_norm);
  CHECK_FALSE(config.post_norms);
  CHECK(config.tied_embeddings);
}

TEST_CASE("what gemma3 stands for, with windows in five layers of six") {
  changed it({.architecture = "gemma3", .layers = 14, .rope_theta = 1e6, .rope_linear_factor = 8});
  it.without("gemma3.attention.sliding_window_pattern").without("gemma3.rope.freq_base_swa");
  auto const config = read(it.writer);
  CHECK(config.gate == activation::gelu);
  CHECK(config.qk_norm);
  CHECK(config.post_norms);
  CHECK(config.embedding_scale == 8);
  CHECK(config.softmax_scale == 0);
  CHECK(config.rope.pairing == rope_pairing::half_split);
  CHECK(config.rope.theta == 1e6);
  CHECK(config.rope.scaling == rope_scaling::linear);
  CHECK(config.local.window == 40);
  CHECK(config.local.layers == std::vector{0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13});
  CHECK(config.local.rope.theta == 10000);
  CHECK(config.local.rope.scaling == rope_scaling::none);
  CHECK(config.local.rope.pairing == rope_pairing::half_split);
  auto const shape = shape_of(config);
  CHECK(shape.window_of(4) == 40);
  CHECK(shape.window_of(5) == 0);
  CHECK(shape.rope_of(5).theta == 1e6);
}

TEST_CASE("gemma3 of 62 layers divides scores by the root of hidden / q_heads") {
  auto const config = read(changed({.architecture = "gemma3", .layers = 62, .hidden = 96}).writer);
  CHECK(config.softmax_scale == 0.25f);
}

TEST_CASE("a pattern that leaves no layer a window") {
  auto const config =
      read(changed({.architecture = "gemma3"}).with("gemma3.attention.sliding_window_pattern", 1u).writer);
  CHECK(config.local.layers.empty());
  CHECK(config.local.window == 0);
}

TEST_CASE("metadata that must be there is named") {
  for (char const* const key :
       {"block_count", "embedding_length", "feed_forward_length", "context_length", "attention.head_count"}) {
    std::string const full = "llama." + std::string(key);
    auto const t = read_error(changed().without(full).writer);
    CHECK(t.code == errc::bad_file);
    CHECK_THAT(t.text, says("tiny.gguf") && says("\"" + full + "\" is missing"));
  }
  CHECK_THAT(read_error(changed().without("general.architecture").writer).text, says("general.architecture"));
  auto nothing = tiny_model().writer();
  nothing.tensors.clear();
  CHECK_THAT(read_error(nothing).text, says("token_embd.weight"));
}

TEST_CASE("an unknown architecture is named") {
  auto const t = read_error(changed().with("general.architecture", "mamba").writer);
  CHECK(t.code == errc::unsupported);
  CHECK_THAT(t.text, says("tiny.gguf") && says("\"mamba\"") && says("expected one of llama, qwen2, gemma3"));
}

TEST_CASE("a mixture of experts is refused, none of them is not") {
  auto const t = read_error(changed().with("llama.expert_count", 8u).writer);
  CHECK(t.code == errc::unsupported);
  CHECK_THAT(t.text, says("llama.expert_count") && says("a mixture of experts"));
  CHECK_NOTHROW(read(changed().with("llama.expert_count", 0u).writer));
}

TEST_CASE("counts outside 1 to 2^31 - 1 are refused by name") {
  std::int64_t const count =
      GENERATE(std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 31, std::numeric_limits<std::int64_t>::max());
  for (char const* const key :
       {"block_count", "embedding_length", "feed_forward_length", "context_length", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "rope.dimension_count", "attention.sliding_window"}) {
    std::string const full = "llama." + std::string(key);
    auto const t = read_error(changed().with(full, count).writer);
    CHECK(t.code == errc::bad_file);
    CHECK_THAT(t.text, says(full + " is " + std::to_string(count) + ", expected 1 to 2147483647"));
  }
}

TEST_CASE("shapes that cannot be are refused with the file's name") {
  auto const error_with = [](std::string const& key, std::uint32_t value) {
    return read_error(changed().with("llama." + key, value).with("llama.attention.value_length", value).writer);
  };
  std::uint32_t const huge = std::numeric_limits<std::int32_t>::max();
  struct {
    thrown found;
    errc code;
    std::string expected;
  } const cases[] = {
      {read_error(changed().with("llama.attention.head_count_kv", 4u).writer), errc::bad_file,
       "6 query heads are no multiple of 4 KV heads"},
      {read_error(changed().with("llama.attention.value_length", 32u).writer), errc::unsupported,
       "keys and values of different length"},
      {error_with("attention.key_length", huge), errc::bad_file, "head_dim is 2147483647"},
      {read_error(changed().with("llama.block_count", huge).writer), errc::bad_file, "layers is 2147483647"},
      {read_error(changed({.architecture = "gemma3"}).with("gemma3.block_count", huge).writer), errc::bad_file,
       "layers is 2147483647"},
      {read_error(changed().with("llama.attention.head_count", 2147483646u).writer), errc::bad_file,
       "q_heads is 2147483646"},
      {read_error(changed().with("llama.rope.dimension_count", 7u).writer), errc::bad_file, "rotary_dim is 7"},
      {read_error(changed().with("llama.rope.dimension_count", 18u).writer), errc::bad_file, "rotary_dim is 18"},
      {read_error(changed().with("llama.rope.freq_base", -1.0f).writer), errc::bad_file, "theta is -1"},
      {read_error(changed({.rope_factors = true}).with("llama.rope.dimension_count", 8u).writer), errc::bad_file,
       "8 frequency_factors, expected rotary_dim / 2 = 4"},
  };
  for (auto const& [found, code, expected] : cases) {
    CHECK(found.code == code);
    CHECK_THAT(found.text, says("tiny.gguf: ") && says(expected));
  }
}

TEST_CASE("an epsilon outside 0 to 1 is refused") {
  float const epsilon = GENERATE(0.0f, -1e-5f, 1.0f, 1e30f);
  auto const t = read_error(changed().with("llama.attention.layer_norm_rms_epsilon", epsilon).writer);
  CHECK(t.code == errc::bad_file);
  CHECK_THAT(t.text, says("rms epsilon") && says("expected 0 to 1"));
}

TEST_CASE("scaling of the rotary embedding") {
  changed it;
  SECTION("linear, as older files say it") {
    auto const rope = read(it.with("llama.rope.scale_linear", 4.0f).writer).rope;
    CHECK(rope.scaling == rope_scaling::linear);
    CHECK(rope.factor == 4);
  }
  SECTION("none, whatever its factor") {
    it.with("llama.rope.scaling.type", "none").with("llama.rope.scaling.factor", 4.0f);
    CHECK(read(it.writer).rope.scaling == rope_scaling::none);
  }
  SECTION("yarn with all its numbers") {
    it.with("llama.rope.scaling.type", "yarn").with("llama.rope.scaling.factor", 8.0f);
    it.with("llama.rope.scaling.original_context_length", 64u).with("llama.rope.scaling.attn_factor", 0.5f);
    auto const rope = read(it.writer).rope;
    CHECK(rope.scaling == rope_scaling::yarn);
    CHECK(rope.factor == 8);
    CHECK(rope.original_context == 64);
    CHECK(rope.attention_factor == Approx(0.5 * (0.1 * std::log(8.0) + 1)));
  }
  SECTION("yarn with the numbers it can do without") {
    it.with("llama.rope.scaling.type", "yarn").with("llama.rope.scaling.factor", 2.0f);
    auto const rope = read(it.writer).rope;
    CHECK(rope.original_context == 512);
    CHECK(rope.attention_factor == Approx(0.1 * std::log(2.0) + 1));
  }
  SECTION("an unknown one") {
    auto const t = read_error(it.with("llama.rope.scaling.type", "longrope").writer);
    CHECK(t.code == errc::unsupported);
    CHECK_THAT(t.text, says("rope scaling \"longrope\"") && says("expected none, linear or yarn"));
  }
  SECTION("a factor that cannot be") {
    it.with("llama.rope.scaling.type", "linear").with("llama.rope.scaling.factor", 0.0f);
    auto const t = read_error(it.writer);
    CHECK(t.code == errc::bad_file);
    CHECK_THAT(t.text, says("tiny.gguf: ") && says("factor is 0"));
  }
}

}  // namespace
}  // namespace kvquant::runtime
