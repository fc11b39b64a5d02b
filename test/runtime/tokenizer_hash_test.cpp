/// \file
/// A tokenizer's hash: equal where the ids of every text are, different where a file can make them differ.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tokenizer.hpp"
#include "test/support/vocabularies.hpp"

using namespace kvquant;
using runtime::token_kind;
using test::test_vocabulary;

namespace {

std::string hash_of(test::gguf_writer const& file) { return test_vocabulary::build(file).hash(); }

}  // namespace

TEST_CASE("The hash changes with everything that decides ids", "[tokenizer]") {
  std::vector<test::gguf_writer> files;
  auto const variant = [&](test_vocabulary v, auto const& change) {
    change(v);
    files.push_back(v.file());
  };
  for (auto const& pre : test::pre_tokenizers) files.push_back(test::many_merges(pre).file());
  for (bool const space_prefix : {true, false}) files.push_back(test::many_pieces(space_prefix).file());
  for (auto const& v : {test::many_merges("gpt-2"), test::many_pieces(true)}) {
    variant(v, [](auto& changed) { changed.texts.back() = "b'"; });
    variant(v, [](auto& changed) { changed.kinds.back() = static_cast<std::int32_t>(token_kind::control); });
    variant(v, [](auto& changed) { changed.add("new"); });
    variant(v, [](auto& changed) { std::swap(changed.texts.back(), changed.texts[changed.texts.size() - 2]); });
    variant(v, [](auto& changed) {
      changed.texts.back() += "x";  // in the next variant only the border between two texts moves
      changed.add("[y]");
    });
    variant(v, [](auto& changed) {
      changed.texts.back() += "x[";
      changed.add("y]");
    });
    files.push_back(test::with(v.file(), "tokenizer.ggml.bos_token_id", 5u));
    files.push_back(test::with(v.file(), "tokenizer.ggml.eos_token_id", 5u));
    files.push_back(
        test::with(test::with(v.file(), "tokenizer.ggml.eos_token_id", 5u), "tokenizer.ggml.add_eos_token", true));
    bool const other = !v.merges.empty();  // than the default of its kind
    files.push_back(test::with(v.file(), "tokenizer.ggml.add_bos_token", other));
  }
  variant(test::many_merges("gpt-2"), [](auto& v) { std::swap(v.merges[0], v.merges[1]); });
  variant(test::many_merges("gpt-2"), [](auto& v) { v.merges.pop_back(); });
  variant(test::many_merges("gpt-2"), [](auto& v) { v.merges.push_back("b a"); });
  variant(test::many_pieces(true), [](auto& v) { v.scores[260] += 1; });
  files.push_back(test::with(test::many_pieces(true).file(), "tokenizer.ggml.unknown_token_id", 3u));
  std::set<std::string> hashes;
  for (auto const& file : files) hashes.insert(hash_of(file));
  CHECK(hashes.size() == files.size());
}

TEST_CASE("The hash changes with nothing else", "[tokenizer]") {
  for (auto const& v : {test::many_merges("smollm"), test::many_pieces(true)}) {
    auto const file = v.file();
    auto const hash = hash_of(file);
    CHECK(hash.size() == 32);
    CHECK(hash.find_first_not_of("0123456789abcdef") == std::string::npos);
    CHECK(hash_of(file) == hash);
    auto reversed = file;
    std::ranges::reverse(reversed.entries);
    CHECK(hash_of(reversed) == hash);
    CHECK(hash_of(test::with(file, "general.name", "another")) == hash);
    CHECK(hash_of(test::with(file, "tokenizer.chat_template", "{{ x }}")) == hash);
    auto with_weights = file;
    with_weights.add("norm", runtime::tensor_type::f32, {2}, std::vector<float>{1, 2});
    CHECK(hash_of(with_weights) == hash);
    CHECK(hash_of(test::with(file, "tokenizer.ggml.add_eos_token", false)) == hash);  // as without it
  }
  auto const bpe = test::many_merges("smollm").file();
  CHECK(hash_of(test::without(bpe, "tokenizer.ggml.scores")) == hash_of(bpe));
  auto const llama = test::many_pieces(true).file();
  CHECK(hash_of(test::without(llama, "tokenizer.ggml.merges")) == hash_of(llama));
  CHECK(hash_of(test::with(llama, "tokenizer.ggml.unknown_token_id", 0u)) == hash_of(llama));
}
