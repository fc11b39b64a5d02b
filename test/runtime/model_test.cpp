#include "runtime/model.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "test/support/thrown.hpp"
#include "test/support/tiny_model.hpp"

namespace kvquant::runtime {
namespace {

using test::error_of;
using test::gguf_writer;
using test::memory_gguf;
using test::random_ids;
using test::says;
using test::thrown;
using test::tiny_model;

thrown load_error(gguf_writer const& writer) {
  inline_executor executor;
  return error_of([&] { model(memory_gguf(writer).file(), executor); });
}

gguf_writer::tensor_record& tensor_of(gguf_writer& writer, std::string const& name) {
  for (auto& tensor : writer.tensors)
    if (tensor.name == name) return tensor;
  throw std::logic_error("no tensor " + name);
}

bool is_optional(std::string const& name) { return name == "output.weight" || name.ends_with(".bias"); }

TEST_CASE("a missing tensor is named") {
  tiny_model const shape{.architecture = GENERATE("llama", "qwen2", "gemma3")};
  auto const whole = shape.writer();
  for (std::size_t i = 0; i < whole.tensors.size(); ++i) {
    std::string const name = whole.tensors[i].name;
    if (is_optional(name)) continue;
    auto writer = whole;
    writer.tensors.erase(writer.tensors.begin() + static_cast<std::ptrdiff_t>(i));
    auto const t = load_error(writer);
    CHECK(t.code == errc::bad_file);
    CHECK_THAT(t.text, says("tiny.gguf") && says("\"" + name + "\" is missing"));
  }
}

TEST_CASE("a misshapen tensor is named with both shapes") {
  auto const whole = tiny_model{.architecture = GENERATE("qwen2", "gemma3")}.writer();
  auto const print = [](std::vector<std::uint64_t> const& shape) {
    std::string out = std::to_string(shape[0]);
    for (std::size_t i = 1; i < shape.size(); ++i) out += " x " + std::to_string(shape[i]);
    return out;
  };
  for (std::size_t i = 0; i < whole.tensors.size(); ++i) {
    if (whole.tensors[i].name == "token_embd.weight") continue;  // its rows are the vocabulary
    auto writer = whole;
    auto& tensor = writer.tensors[i];
    auto const expected = tensor.shape;
    --tensor.shape.back();
    auto const t = load_error(writer);
    CHECK(t.code == errc::bad_file);
    CHECK_THAT(t.text, says("\"" + tensor.name + "\" is " + print(tensor.shape) + ", expected " + print(expected)));
  }
}

TEST_CASE("a matrix that lies on its side, and one of three dimensions") {
  auto writer = tiny_model().writer();
  auto& q = tensor_of(writer, "blk.1.attn_q.weight");
  q.shape = {96, 64};
  CHECK_THAT(load_error(writer).text, says("\"blk.1.attn_q.weight\" is 96 x 64, expected 64 x 96"));
  q.shape = {64, 48, 2};
  CHECK_THAT(load_error(writer).text, says("is 64 x 48 x 2, expected 64 x 96"));
  q.shape = {64, 96, 1, 1};
  inline_executor executor;
  CHECK_NOTHROW(model(memory_gguf(writer).file(), executor));
  tensor_of(writer, "token_embd.weight").shape = {32, 512};
  auto const t = load_error(writer);
  CHECK(t.code == errc::bad_file);
  CHECK_THAT(t.text, says("\"token_embd.weight\" is 32 x 512, expected 64 x 512"));
}

TEST_CASE("weights that are not finite are named with their row") {
  float const value = GENERATE(std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity());
  auto const load_with = [&](std::string const& name, std::size_t element) {
    auto writer = tiny_model{.architecture = "qwen2"}.writer();
    std::memcpy(tensor_of(writer, name).data.data() + element * sizeof(float), &value, sizeof value);
    return load_error(writer);
  };
  for (auto const& [name, row] : std::vector<std::pair<std::string, std::size_t>>{{"token_embd.weight", 255},
                                                                                  {"output.weight", 0},
                                                                                  {"blk.0.attn_k.weight", 31},
                                                                                  {"blk.1.ffn_down.weight", 63},
                                                                                  {"blk.1.ffn_up.weight", 64}}) {
    std::size_t const cols = name == "blk.1.ffn_down.weight" ? 96 : 64;
    auto const t = load_with(name, row * cols + 17);
    CHECK(t.code == errc::bad_value);
    CHECK_THAT(t.text, says("tiny.gguf: tensor \"" + name + "\", row " + std::to_string(row)) && says("finite"));
  }
  for (char const* const name : {"output_norm.weight", "blk.1.ffn_norm.weight", "blk.0.attn_v.bias"}) {
    auto const t = load_with(name, 5);
    CHECK(t.code == errc::bad_value);
    CHECK_THAT(t.text, says(text("\"", name, "\", row 0")));
  }
}

TEST_CASE("a scale that is not finite in a block of weights is named with its row") {
  auto writer = tiny_model{.type = tensor_type::q8_0}.writer();
  auto& down = tensor_of(writer, "blk.1.ffn_down.weight").data;
  std::uint16_t const infinite_half = 0x7c00;
  std::size_t const row_bytes = 96 / 32 * 34;
  std::memcpy(down.data() + 40 * row_bytes + 34, &infinite_half, sizeof infinite_half);
  cpu::thread_pool pool(2);
  auto const t = error_of([&] { model(memory_gguf(writer).file(), pool); });
  CHECK(t.code == errc::bad_value);
  CHECK_THAT(t.text, says("\"blk.1.ffn_down.weight\", row 40"));
}

TEST_CASE("tensors that belong to other kinds of models are refused by name") {
  for (char const* const name :
       {"attn_q_norm.weight", "attn_k_norm.weight", "post_attention_norm.weight", "post_ffw_norm.weight",
        "attn_output.bias", "ffn_up.bias", "ffn_gate.bias", "ffn_down.bias"}) {
    auto writer = tiny_model().writer();
    std::string const full = "blk.1." + std::string(name);
    writer.add(full, tensor_type::f32, {64}, std::vector<float>(64, 1.0f));
    auto const t = load_error(writer);
    CHECK(t.code == errc::unsupported);
    CHECK_THAT(t.text, says("\"" + full + "\"") && says("llama"));
  }
}

TEST_CASE("a tensor of a type that cannot be read is named with its type") {
  auto writer = tiny_model().writer();
  tensor_of(writer, "blk.0.ffn_gate.weight").type = 16;
  auto const t = load_error(writer);
  CHECK(t.code == errc::unsupported);
  CHECK_THAT(t.text, says("\"blk.0.ffn_gate.weight\"") && says("IQ2_XXS"));
}

TEST_CASE("token ids outside the vocabulary are refused with their place") {
  memory_gguf const gguf(tiny_model().writer());
  inline_executor executor;
  model const m(gguf.file(), executor);
  token_id const id = GENERATE(-1, 256, std::numeric_limits<token_id>::min(), std::numeric_limits<token_id>::max());
  auto ids = random_ids(20, tiny_model::vocabulary, 1);
  ids[13] = id;
  for (auto const& call : {std::function<void()>([&] { m.forward(ids); }), std::function<void()>([&] {
                             m.loss_and_gradients(ids, [](int, kv_gradients const&) {});
                           })}) {
    auto const t = error_of(call);
    CHECK(t.code == errc::bad_value);
    CHECK_THAT(t.text, says("token 13 is " + std::to_string(id) + ", expected 0 to 255"));
  }
  CHECK_NOTHROW(m.forward(std::vector<token_id>{0, 255}));
  CHECK(error_of([&] { m.forward({}); }).code == errc::bad_value);
}

TEST_CASE("with a window tokens beyond it make no difference") {
  auto writer = tiny_model().writer();
  writer.set("llama.attention.sliding_window", 8u);
  memory_gguf const gguf(writer), whole(tiny_model().writer());
  inline_executor executor;
  model const m(gguf.file(), executor);
  model const unlimited(whole.file(), executor);
  auto const ids = random_ids(9, tiny_model::vocabulary, 2);
  std::span const first = std::span(ids).first(8);
  CHECK(m.forward(first) == unlimited.forward(first));
  CHECK(m.forward(ids).topRows(8) == unlimited.forward(ids).topRows(8));
  CHECK(m.forward(ids).row(8) != unlimited.forward(ids).row(8));
}

TEST_CASE("scores into matrices of another shape are refused") {
  memory_gguf const gguf(tiny_model().writer());
  inline_executor executor;
  model const m(gguf.file(), executor);
  auto const error_with = [&](int hidden_rows, int hidden_cols, int rows, int cols) {
    matrix const hidden = matrix::Zero(hidden_rows, hidden_cols);
    matrix out(rows, cols);
    return error_of([&] { m.logits(view_of(hidden), view_of(out)); });
  };
  auto const narrow = error_with(2, 63, 2, 256);
  CHECK(narrow.code == errc::bad_shape);
  CHECK_THAT(narrow.text, says("2 x 63 to 2 x 256") && says("64") && says("256"));
  CHECK(error_with(2, 64, 3, 256).code == errc::bad_shape);
  CHECK(error_with(2, 64, 2, 255).code == errc::bad_shape);
}

TEST_CASE("the bytes of the weights are those of the tensors that are read") {
  tiny_model const shape{.architecture = GENERATE("llama", "qwen2"),
                         .tied_embeddings = GENERATE(false, true),
                         .type = GENERATE(tensor_type::f32, tensor_type::q4_1)};
  auto writer = shape.writer();
  std::size_t bytes = 0;
  for (auto const& tensor : writer.tensors) bytes += tensor.data.size();
  writer.add("unrelated", tensor_type::f32, {3}, std::vector<float>{1, 2, 3});
  memory_gguf const gguf(writer);
  cpu::thread_pool pool(2);
  model const m(gguf.file(), pool);
  CHECK(m.weight_bytes() == bytes);
  CHECK(m.executor().workers() == 2);
  CHECK(m.config().tied_embeddings == shape.tied_embeddings);
}

TEST_CASE("a moved model computes what it did") {
  memory_gguf const gguf(tiny_model().writer()), other_gguf(tiny_model{.seed = 9}.writer());
  inline_executor executor;
  model m(gguf.file(), executor);
  auto const ids = random_ids(5, tiny_model::vocabulary, 3);
  matrix const before = m.forward(ids);
  model moved = std::move(m);
  CHECK(moved.forward(ids) == before);
  model assigned(other_gguf.file(), executor);
  assigned = std::move(moved);
  CHECK(assigned.forward(ids) == before);
}

}  // namespace
}  // namespace kvquant::runtime
