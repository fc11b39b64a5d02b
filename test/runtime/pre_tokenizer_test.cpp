/// \file
/// Words, as the published patterns cut them by hand.

#include "runtime/tokenizer/pre_tokenizer.hpp"

#include <catch2/catch.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/core/error.hpp"
#include "runtime/tokenizer/utf8.hpp"
#include "test/support/random_text.hpp"

using kvquant::runtime::pre_tokenizer;
using words = std::vector<std::string_view>;

namespace {

struct example {
  std::string_view text;
  words expected;
};

void check(std::string_view name, std::vector<example> const& examples) {
  pre_tokenizer const p(name);
  for (example const& e : examples) {
    INFO(name << ": \"" << e.text << '"');
    CHECK(p.split(e.text) == e.expected);
  }
}

std::string joined(words const& parts) {
  std::string all;
  for (auto const part : parts) all += part;
  return all;
}

}  // namespace

TEST_CASE("gpt-2 words: one space goes with what follows it", "[tokenizer]") {
  check("gpt-2", {{"", {}},
                  {"Hello world", {"Hello", " world"}},
                  {"a, b", {"a", ",", " b"}},
                  {"x1 23", {"x", "1", " 23"}},
                  {"!? ...", {"!?", " ..."}},
                  {"_a_", {"_", "a", "_"}},
                  {" a", {" a"}}});
}

TEST_CASE("gpt-2 contractions are lower-case and ASCII", "[tokenizer]") {
  check("gpt-2", {{"I'm can't they've", {"I", "'m", " can", "'t", " they", "'ve"}},
                  {"we'll we'LL", {"we", "'ll", " we", "'", "LL"}},
                  {"'sad", {"'s", "ad"}},
                  {"it’s", {"it", "’", "s"}},
                  {" 's", {" '", "s"}}});
}

TEST_CASE("gpt-2 leaves the last space of a run to the next word", "[tokenizer]") {
  check("gpt-2", {{"a  b", {"a", " ", " b"}},
                  {"a    b", {"a", "   ", " b"}},
                  {"a   ", {"a", "   "}},
                  {"a \n b", {"a", " \n", " b"}},
                  {"a\n\nb", {"a", "\n", "\n", "b"}},
                  {"a  1", {"a", " ", " 1"}},
                  {"   ", {"   "}}});
}

TEST_CASE("gpt-2 classes are Unicode's", "[tokenizer]") {
  check("gpt-2", {{"٣٤ ab", {"٣٤", " ab"}},                  // Nd
                  {"aⅧ½", {"a", "Ⅷ½"}},                      // Nl, No
                  {"你好,世界", {"你好", ",", "世界"}},      // Lo
                  {"naïve straße", {"naïve", " straße"}},    // composed letters
                  {"e\u0301x", {"e", "\u0301", "x"}},        // Mn is no letter
                  {"हिन्दी", {"ह", "ि", "न", "्", "द", "ी"}},  // Mc, Mn
                  {"👩\u200D💻!", {"👩\u200D💻!"}},              // So, Cf
                  {"a\u00A0b", {"a", "\u00A0", "b"}},        // space, but not U+0020
                  {"a\u3000\u2003b", {"a", "\u3000", "\u2003", "b"}},
                  {"a\u0085\u2028b", {"a", "\u0085", "\u2028", "b"}},
                  {"a \u180Eb", {"a", " \u180E", "b"}}});  // Cf since Unicode 6.3
}

TEST_CASE("smollm isolates digits before anything else", "[tokenizer]") {
  check("smollm", {{"x123 45", {"x", "1", "2", "3", " ", "4", "5"}},
                   {"a  1", {"a", "  ", "1"}},
                   {"a  b", {"a", " ", " b"}},
                   {"1's '1", {"1", "'s", " '", "1"}},
                   {"3.14", {"3", ".", "1", "4"}},
                   {"٣٤ Ⅷ½", {"٣", "٤", " ", "Ⅷ", "½"}},
                   {" \n2", {" \n", "2"}},
                   {"a \n b", {"a", " \n", " b"}}});
}

TEST_CASE("llama-bpe words: up to three digits, any case, a prefix for letters", "[tokenizer]") {
  check("llama-bpe", {{"1234567", {"123", "456", "7"}},
                      {"a 12", {"a", " ", "12"}},
                      {"I'LL we'Re", {"I", "'LL", " we", "'Re"}},
                      {"don'ſ", {"don", "'ſ"}},  // U+017F folds to s
                      {"(hello)\tx", {"(hello", ")", "\tx"}},
                      {"a.\n\nb", {"a", ".\n\n", "b"}},
                      {"a\n\nb", {"a", "\n\n", "b"}},
                      {"  \n  x", {"  \n", " ", " x"}},
                      {"a  \r\n", {"a", "  \r\n"}},
                      {"a  !", {"a", " ", " !"}},
                      {"e\u0301x", {"e", "\u0301x"}},
                      {"\nx", {"\n", "x"}}});
}

TEST_CASE("qwen2 words differ from llama-bpe's in their digits", "[tokenizer]") {
  check("qwen2", {{"1234", {"1", "2", "3", "4"}},
                  {"a 12", {"a", " ", "1", "2"}},
                  {"٣٤", {"٣", "٤"}},
                  {"I'LL (x).\n", {"I", "'LL", " (", "x", ").\n"}},
                  {"a\n\n b", {"a", "\n\n", " b"}}});
}

TEST_CASE("Nothing runs or looks across bytes that are not UTF-8", "[tokenizer]") {
  check("gpt-2", {{"ab\xFF\xFE cd", {"ab", "\xFF\xFE", " cd"}},
                  {"  \xFF", {"  ", "\xFF"}},
                  {"\xC3(", {"\xC3", "("}},
                  {"\xE4\xBD a", {"\xE4\xBD", " a"}},
                  {"\xED\xA0\x80", {"\xED\xA0\x80"}},  // a surrogate
                  {"\xC0\xAF"
                   "a",
                   {"\xC0\xAF", "a"}},                           // overlong
                  {"\xF4\x90\x80\x80", {"\xF4\x90\x80\x80"}}});  // above U+10FFFF
}

TEST_CASE("Words always add up to the text", "[tokenizer]") {
  std::mt19937 random(1);
  for (auto const name : {"gpt-2", "smollm", "llama-bpe", "qwen2"}) {
    pre_tokenizer const p(name);
    for (int i = 0; i < 300; ++i) {
      auto const text = kvquant::test::random_bytes_in_utf8(random, 1 + random() % 60);
      auto const parts = p.split(text);
      REQUIRE(joined(parts) == text);
      for (auto const part : parts) REQUIRE(!part.empty());
    }
  }
}

TEST_CASE("smollm equals isolating digits and then cutting with gpt-2", "[tokenizer]") {
  std::mt19937 random(2);
  pre_tokenizer const gpt2("gpt-2"), smollm("smollm");
  std::vector<std::string> const others{" ", " ", "\n", "a", "bc", "'s", "'", "!", "é", "\u0301", "\u00A0"};
  std::vector<std::string> const digits{"1", "23", "٣", "Ⅷ"};
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    std::vector<std::string> two_stages;
    for (int part = 0; part < 4; ++part) {
      std::string between;
      for (auto n = random() % 5; n > 0; --n) between += others[random() % others.size()];
      std::string const run = digits[random() % digits.size()];
      for (auto const word : gpt2.split(between)) two_stages.emplace_back(word);
      for (std::size_t at = 0; at < run.size();) {
        auto const length = kvquant::runtime::utf8_length(std::string_view(run).substr(at));
        two_stages.push_back(run.substr(at, length));
        at += length;
      }
      text += between + run;
    }
    auto const got = smollm.split(text);
    INFO(text);
    REQUIRE(std::vector<std::string>(got.begin(), got.end()) == two_stages);
  }
}

TEST_CASE("Pre-tokenizers go by GGUF's names", "[tokenizer]") {
  CHECK(pre_tokenizer("llama3").split("1234") == pre_tokenizer("llama-bpe").split("1234"));
  CHECK(pre_tokenizer("deepseek-r1-qwen").split("12") == words{"1", "2"});
  CHECK(pre_tokenizer("llama3").name() == "llama3");
  CHECK(pre_tokenizer("llama-bpe").whole_words_first());
  CHECK(pre_tokenizer("llama-bpe").adds_bos());
  CHECK_FALSE(pre_tokenizer("qwen2").whole_words_first());
  CHECK_FALSE(pre_tokenizer("gpt-2").adds_bos());
  for (auto const name : {"tekken", "", "default", "SMOLLM"}) {
    try {
      pre_tokenizer const p(name);
      FAIL("accepted " << name);
    } catch (kvquant::error const& e) {
      CHECK(e.code == kvquant::errc::unsupported);
      CHECK(std::string(e.what()).find('"' + std::string(name) + '"') != std::string::npos);
      for (auto const known : {"gpt-2", "smollm", "llama-bpe", "qwen2"})
        CHECK(std::string(e.what()).find(known) != std::string::npos);
    }
  }
}
