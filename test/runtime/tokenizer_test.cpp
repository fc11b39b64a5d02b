/// \file
/// What both kinds of tokenizer promise: texts come back, metadata is honoured, broken files are named.

#include "runtime/tokenizer.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "test/support/random_text.hpp"
#include "test/support/thrown.hpp"
#include "test/support/vocabularies.hpp"

using namespace kvquant;
using runtime::encode_options;
using runtime::token_id;
using runtime::token_kind;
using runtime::tokenizer;
using test::error_of;
using test::says;
using test::test_vocabulary;
using ids = std::vector<token_id>;

namespace {

constexpr encode_options plain{.add_special = false, .parse_special = false};
constexpr encode_options parsed{.add_special = false, .parse_special = true};

std::vector<test_vocabulary> all_kinds() {
  std::vector<test_vocabulary> all{test::many_pieces(true), test::many_pieces(false)};
  for (auto const& pre : test::pre_tokenizers) all.push_back(test::many_merges(pre));
  return all;
}

/// Three texts in four are UTF-8; special tokens stand in half of them.
std::string hard_text(std::mt19937& random, int number) {
  std::size_t const characters = random() % 50;
  auto text = number % 4 == 3 ? test::random_bytes_in_utf8(random, characters) : test::random_utf8(random, characters);
  if (number % 2 == 1)
    for (auto n = 1 + random() % 3; n > 0; --n)
      text.insert(random() % (text.size() + 1), test::special_texts[random() % test::special_texts.size()]);
  return text;
}

}  // namespace

TEST_CASE("Every text comes back, whatever the model and the options", "[tokenizer]") {
  std::mt19937 random(31);
  for (auto const& v : all_kinds()) {
    auto const t = v.build();
    INFO(t.model() << ' ' << t.pre_tokenizer());
    CHECK(t.missing_bytes().empty());
    CHECK(t.encode("", plain).empty());
    for (int i = 0; i < 400; ++i) {
      auto const text = hard_text(random, i);
      REQUIRE(t.decode(t.encode(text, plain)) == text);
      REQUIRE(t.decode(t.encode(text, parsed)) == text);
    }
    std::string all_bytes;
    for (int byte = 255; byte >= 0; --byte) all_bytes += static_cast<char>(byte);
    CHECK(t.decode(t.encode(all_bytes, plain)) == all_bytes);
  }
}

TEST_CASE("A text's control tokens are tokens only if asked for; user-defined ones always are", "[tokenizer]") {
  for (auto const& v : all_kinds()) {
    auto const t = v.build();
    auto const id = [&](std::string_view text) {
      return static_cast<token_id>(std::ranges::find(v.texts, text) - v.texts.begin());
    };
    auto const has = [&](ids const& found, std::string_view text) { return std::ranges::count(found, id(text)); };
    std::string const text = "a<s> <u><v>b</s><u><|im_start|>";
    auto const ordinary = t.encode(text, plain);
    auto const special = t.encode(text, parsed);
    for (auto const control : {"<s>", "</s>", "<|im_start|>"}) {
      CHECK(has(ordinary, control) == 0);
      CHECK(has(special, control) == 1);
      CHECK(t.is_control(id(control)));
    }
    for (auto const user : {"<u>", "<u><v>"}) {
      CHECK(has(ordinary, user) == 1);
      CHECK(has(special, user) == 1);
      CHECK_FALSE(t.is_control(id(user)));
    }
    CHECK(t.encode("<u><v>", plain) == ids{id("<u><v>")});
    CHECK(t.encode("<s><s>", parsed) == ids{id("<s>"), id("<s>")});
    CHECK(t.decode(t.encode("<s>", parsed)) == "<s>");
  }
}

TEST_CASE("BOS and EOS are put where the metadata asks for them", "[tokenizer]") {
  auto const base = test::many_merges("gpt-2").file();
  for (bool const bos : {false, true})
    for (bool const eos : {false, true}) {
      auto file = test::with(base, "tokenizer.ggml.bos_token_id", 7u);
      file.set("tokenizer.ggml.eos_token_id", 9u);
      file.set("tokenizer.ggml.add_bos_token", bos).set("tokenizer.ggml.add_eos_token", eos);
      auto const t = test_vocabulary::build(file);
      CHECK(t.bos() == 7);
      CHECK(t.eos() == 9);
      CHECK(t.add_bos() == bos);
      CHECK(t.add_eos() == eos);
      ids expected{'x'};
      if (bos) expected.insert(expected.begin(), 7);
      if (eos) expected.push_back(9);
      CHECK(t.encode("x") == expected);
      CHECK(t.encode("").size() == expected.size() - 1);
      CHECK(t.encode("x", plain) == ids{'x'});
      CHECK(t.encode("x", parsed) == ids{'x'});
    }
}

TEST_CASE("Without metadata each kind has its own defaults", "[tokenizer]") {
  auto const llama = test::byte_fallback().build();
  CHECK(std::pair(llama.bos(), llama.eos()) == std::pair(1, 2));
  CHECK(llama.add_bos());
  CHECK_FALSE(llama.add_eos());
  CHECK(llama.model() == "llama");
  CHECK(llama.pre_tokenizer().empty());
  CHECK(llama.vocabulary_size() == 259);
  CHECK(llama.encode("a") == ids{1, 3 + ' ', 3 + 'a'});
  CHECK(llama.decode(llama.encode("a")) == "<s>a");
  std::set<std::string_view> const with_bos{"llama-bpe", "llama3", "llama-v3", "falcon3"};
  for (auto const& pre : test::pre_tokenizers) {
    auto const t = test::byte_level(pre).build();  // BOS is token 0
    CHECK(t.model() == "gpt2");
    CHECK(t.pre_tokenizer() == pre);
    CHECK(t.eos() == -1);
    CHECK(t.add_bos() == with_bos.contains(pre));
    CHECK(t.encode("a") == (with_bos.contains(pre) ? ids{0, 'a'} : ids{'a'}));
  }
  CHECK(test_vocabulary::build(test::without(test::many_merges("gpt-2").file(), "tokenizer.ggml.bos_token_id")).bos() ==
        -1);
}

TEST_CASE("Ids outside the vocabulary are refused", "[tokenizer]") {
  auto const t = test::many_merges("gpt-2").build();
  token_id const size = t.vocabulary_size();
  for (token_id const outside : {-1, size, INT32_MAX, INT32_MIN}) {
    std::string const expected =
        "token id " + std::to_string(outside) + " is outside the vocabulary of " + std::to_string(size) + " tokens";
    for (auto const& error :
         {error_of([&] { t.piece(outside); }), error_of([&] { t.is_control(outside); }), error_of([&] {
            t.decode(ids{0, outside});
          })}) {
      CHECK(error.code == errc::bad_value);
      CHECK(error.text == expected);
    }
  }
  CHECK(t.piece(size - 1) == "bé");
}

TEST_CASE("A text of 1 GiB is refused before it is read", "[tokenizer]") {
  struct release {
    void operator()(void* memory) const { std::free(memory); }
  };
  constexpr std::size_t gib = std::size_t{1} << 30;
  std::unique_ptr<void, release> const zeros(std::calloc(gib, 1));  // no page of it is touched
  auto const t = test::many_merges("gpt-2").build();
  auto const error = error_of([&] { t.encode({static_cast<char const*>(zeros.get()), gib}); });
  CHECK(error.code == errc::bad_value);
  CHECK_THAT(error.text, says("a text of 1073741824 bytes, expected less than 1 GiB"));
}

TEST_CASE("A tokenizer that is moved from one place to another stays the same", "[tokenizer]") {
  auto a = test::many_merges("smollm").build();
  auto const expected = a.encode("a ab <u> 12");
  tokenizer b(std::move(a));
  CHECK(b.encode("a ab <u> 12") == expected);
  a = test::many_pieces(true).build();
  b = std::move(a);
  CHECK(b.decode(b.encode("a ab <u> 12", plain)) == "a ab <u> 12");
}

TEST_CASE("Unknown models and pre-tokenizers are refused with the known ones", "[tokenizer]") {
  auto const file = test::many_merges("gpt-2").file();
  for (auto const name : {"bert", "", "GPT2"}) {
    auto const error = error_of([&] { test_vocabulary::build(test::with(file, "tokenizer.ggml.model", name)); });
    CHECK(error.code == errc::unsupported);
    CHECK(error.text == "test.gguf: tokenizer model \"" + std::string(name) + "\" is not known; known are gpt2, llama");
  }
  auto const unnamed = error_of([&] { test_vocabulary::build(test::without(file, "tokenizer.ggml.model")); });
  CHECK(unnamed.code == errc::bad_file);
  CHECK_THAT(unnamed.text, says("tokenizer.ggml.model"));
  for (auto const& broken :
       {test::with(file, "tokenizer.ggml.pre", "tekken"), test::without(file, "tokenizer.ggml.pre")}) {
    auto const error = error_of([&] { test_vocabulary::build(broken); });
    CHECK(error.code == errc::unsupported);
    for (auto const& known : test::pre_tokenizers) CHECK_THAT(error.text, says(known));
  }
}

TEST_CASE("BOS and EOS that are no tokens are refused", "[tokenizer]") {
  auto const file = test::without(test::many_merges("gpt-2").file(), "tokenizer.ggml.bos_token_id");
  auto const refusal = [](test::gguf_writer const& broken) {
    auto const error = error_of([&] { test_vocabulary::build(broken); });
    CHECK(error.code == errc::bad_file);
    return error.text;
  };
  for (auto const key : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"})
    for (std::int64_t const outside : {std::int64_t{-1}, std::int64_t{1000}, std::int64_t{1} << 32})
      CHECK_THAT(refusal(test::with(file, key, outside)),
                 says(key + (" is " + std::to_string(outside)) + ", expected an id"));
  for (auto const key : {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"})
    CHECK_THAT(refusal(test::with(file, key, true)), says(std::string(key) + " is true, but no token is named for it"));
  CHECK_THAT(refusal(test::with(file, "tokenizer.ggml.pre", "llama3")),
             says("is true for this kind of tokenizer, but no"));
  test_vocabulary alone;
  alone.add("a");
  alone.metadata.set("tokenizer.ggml.model", "llama");
  CHECK_THAT(refusal(alone.file()), says("no token is named for it"));
}

TEST_CASE("Threads that encode at once get what one gets", "[tokenizer]") {
  for (auto const& v : {test::many_merges("llama-bpe"), test::many_pieces(true)}) {
    auto const t = v.build();
    std::mt19937 random(33);
    std::vector<std::string> texts;
    std::vector<ids> alone;
    for (int i = 0; i < 200; ++i) alone.push_back(t.encode(texts.emplace_back(hard_text(random, i)), parsed));
    std::vector<std::size_t> wrong(4);
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < wrong.size(); ++thread)
      threads.emplace_back([&, thread] {
        for (std::size_t i = 0; i < texts.size(); ++i) {
          std::size_t const at = (i + thread * 50) % texts.size();
          wrong[thread] += t.encode(texts[at], parsed) != alone[at] || t.decode(alone[at]) != texts[at];
        }
      });
    for (auto& thread : threads) thread.join();
    CHECK(wrong == std::vector<std::size_t>(4));
  }
}

TEST_CASE("A megabyte of anything takes seconds at most", "[tokenizer]") {
  constexpr std::size_t megabyte = 1 << 20;
  std::vector<std::string> texts;
  for (std::string const unit :
       {"a", " ", "\n", "'", "1", "\xFF", "é", "a\xFF", " \n", "<", "<u", "<u><", "<s>", "▁"}) {
    std::string& text = texts.emplace_back();
    while (text.size() < megabyte) text += unit;
  }
  for (auto const& v : {test::many_pieces(true), test::many_merges("smollm"), test::many_merges("llama-bpe")}) {
    auto const t = v.build();
    for (auto const& text : texts) {
      auto const start = std::chrono::steady_clock::now();
      auto const found = t.encode(text, parsed);
      std::chrono::duration<double> const seconds = std::chrono::steady_clock::now() - start;
      INFO(t.model() << ' ' << t.pre_tokenizer() << ": " << text.substr(0, 8));
      CHECK(seconds.count() < 20);  // a quadratic loop takes 10¹² steps, sanitizers and busy machines tenfold time
      CHECK(t.decode(found) == text);
    }
  }
}
