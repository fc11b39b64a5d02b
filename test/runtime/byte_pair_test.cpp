/// \file
/// Byte-level BPE against results worked out by hand, and against the rule carried out literally.

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tokenizer.hpp"
#include "runtime/tokenizer/byte_alphabet.hpp"
#include "test/support/random_text.hpp"
#include "test/support/thrown.hpp"
#include "test/support/vocabularies.hpp"

using namespace kvquant;
using runtime::token_id;
using runtime::token_kind;
using ids = std::vector<token_id>;

TEST_CASE("The byte alphabet is GPT-2's", "[tokenizer]") {
  CHECK(runtime::spell_bytes(" a~") == "Ġa~");
  CHECK(runtime::spell_bytes("\n\t\r") == "Ċĉč");
  CHECK(runtime::spell_bytes(std::string(1, '\0')) == "Ā");
  CHECK(runtime::spell_bytes("\x7F\x80\xA0\xAD\xFF") == "ġĢłŃÿ");
  CHECK(runtime::spell_bytes("é") == "Ã©");
  CHECK(runtime::unspell_bytes("Ġt") == " t");
  for (auto const broken : {" ", "\n", "ń", "你", "\xC4", "\xFF", "\xC0\xA1"})
    CHECK_FALSE(runtime::unspell_bytes(broken).has_value());
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  CHECK(runtime::unspell_bytes(runtime::spell_bytes(all)) == all);
}

TEST_CASE("The merge of lowest rank goes first", "[tokenizer]") {
  auto v = test::byte_level("gpt-2");
  auto const ab = v.add_merge("a", "b");
  auto const bc = v.add_merge("b", "c");
  auto const abc = v.add_merge("ab", "c");
  auto const t = v.build();
  CHECK(t.encode("abc") == ids{abc});
  CHECK(t.encode("bcab") == ids{bc, ab});
  CHECK(t.encode("abbc") == ids{ab, bc});
  CHECK(t.encode("aabc") == ids{'a', abc});
  CHECK(t.encode("acb") == ids{'a', 'c', 'b'});
  CHECK(t.encode("") == ids{});
}

TEST_CASE("A merge that comes first can block a longer token", "[tokenizer]") {
  auto v = test::byte_level("gpt-2");
  auto const bc = v.add_merge("b", "c");
  v.add_merge("a", "b");
  v.add_merge("ab", "c");
  CHECK(v.build().encode("abc") == ids{'a', bc});
}

TEST_CASE("Of equal merges the leftmost goes first", "[tokenizer]") {
  auto v = test::byte_level("gpt-2");
  auto const aa = v.add_merge("a", "a");
  auto const four = v.add_merge("aa", "aa");
  auto const t = v.build();
  CHECK(t.encode("aaa") == ids{aa, 'a'});
  CHECK(t.encode("aaaaa") == ids{four, 'a'});
  CHECK(t.encode("aaaaaaa") == ids{four, aa, 'a'});
}

TEST_CASE("Merges stay inside words", "[tokenizer]") {
  auto const build = [](std::string_view pre) {
    auto v = test::byte_level(pre);
    v.add_merge("Ġ", "b");  // 256
    v.add_merge("a", "Ġ");  // 257
    v.add_merge("1", "2");  // 258
    return v.build();
  };
  CHECK(build("gpt-2").encode("a b12") == ids{'a', 256, 258});
  CHECK(build("smollm").encode("a b12") == ids{'a', 256, '1', '2'});
}

TEST_CASE("Characters beyond ASCII are their bytes, merged like any", "[tokenizer]") {
  auto v = test::byte_level("gpt-2");
  auto const e_acute = v.add_merge("Ã", "©");
  auto const t = v.build();
  CHECK(t.encode("é") == ids{e_acute});
  CHECK(t.encode("ê") == ids{0xC3, 0xAA});
  CHECK(t.encode("\xC3\xA9\xC3") == ids{e_acute, 0xC3});
  CHECK(t.piece(e_acute) == "é");
}

TEST_CASE("llama-bpe takes a whole word that is a token before any merge", "[tokenizer]") {
  auto const build = [](std::string_view pre) {
    auto v = test::byte_level(pre);
    v.add("abc");                       // 256, which no merge makes
    v.add("Ġhi");                       // 257
    v.add("ctl", token_kind::control);  // 258
    v.add("Ġé", token_kind::normal);    // 259: spelled with a letter that is no spelling of é
    v.add_merge("a", "b");              // 260
    v.metadata.set("tokenizer.ggml.add_bos_token", false);
    return v.build();
  };
  auto const llama = build("llama-bpe");
  CHECK(llama.encode("abc") == ids{256});
  CHECK(llama.encode("abc hi") == ids{256, 257});
  CHECK(llama.encode("abcd") == ids{260, 'c', 'd'});
  CHECK(llama.encode("ctl") == ids{'c', 't', 'l'});
  CHECK(llama.encode(" é") == ids{' ', 0xC3, 0xA9});
  CHECK(build("qwen2").encode("abc hi") == ids{260, 'c', ' ', 'h', 'i'});
}

TEST_CASE("A byte without a token is left out and nothing merges across it", "[tokenizer]") {
  auto v = test::byte_level("gpt-2");
  v.texts['z'] = "[unused]";
  v.texts[0xFF] = "[unused too]";
  auto const ab = v.add_merge("a", "b");
  auto const t = v.build();
  CHECK(t.missing_bytes() == "z\xFF");
  CHECK(t.encode("ab") == ids{ab});
  CHECK(t.encode("azb") == ids{'a', 'b'});
  CHECK(t.encode("z\xFFz") == ids{});
  CHECK(t.decode(t.encode("azb")) == "ab");
  CHECK(test::byte_level("gpt-2").build().missing_bytes().empty());
}

namespace {

/// The rule itself: again and again join the first pair of the lowest rank.
ids merge_literally(ids symbols, std::map<std::pair<token_id, token_id>, std::pair<int, token_id>> const& merges) {
  while (true) {
    auto best = merges.end();
    std::size_t where = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      auto const found = merges.find({symbols[i], symbols[i + 1]});
      if (found != merges.end() && (best == merges.end() || found->second.first < best->second.first)) {
        best = found;
        where = i;
      }
    }
    if (best == merges.end()) return symbols;
    symbols[where] = best->second.second;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
}

}  // namespace

TEST_CASE("Merging equals the literal rule on random merges", "[tokenizer]") {
  std::mt19937 random(3);
  for (int vocabulary = 0; vocabulary < 40; ++vocabulary) {
    auto v = test::byte_level("gpt-2");
    std::vector<std::string> pool{"a", "b", "c"};
    std::map<std::pair<token_id, token_id>, std::pair<int, token_id>> merges;
    auto const id_of = [&](std::string const& spelled) {
      return static_cast<token_id>(std::ranges::find(v.texts, spelled) - v.texts.begin());
    };
    for (int rank = 0; rank < 25; ++rank) {
      auto const left = pool[random() % pool.size()], right = pool[random() % pool.size()];
      if (merges.contains({id_of(left), id_of(right)})) continue;
      auto const made = v.add_merge(left, right);
      merges[{id_of(left), id_of(right)}] = {static_cast<int>(v.merges.size()), made};
      if (left.size() + right.size() < 8) pool.push_back(left + right);
    }
    auto const t = v.build();
    for (int i = 0; i < 50; ++i) {
      std::string word;
      for (auto n = random() % 40; n > 0; --n) word += static_cast<char>('a' + random() % 3);
      REQUIRE(t.encode(word) == merge_literally(ids(word.begin(), word.end()), merges));
    }
  }
}

TEST_CASE("Merges that are not two tokens which make a third are refused", "[tokenizer]") {
  auto const refusal = [](std::string const& merge) {
    auto v = test::byte_level("gpt-2");
    v.add_merge("a", "b");
    for (auto const text : {"<s>", "Ġ<s>", "<s>Ġ"}) v.add(text, token_kind::control);
    v.merges.push_back(merge);
    auto const error = test::error_of([&] { v.build(); });
    CHECK(error.code == errc::bad_file);
    CHECK_THAT(error.text, test::says("test.gguf: merge 1 is "));
    return error.text;
  };
  for (auto const broken : {"", " ", "ab", " ab", "ab ", "a  b", "a b ", " a b", "a b c"}) {
    INFO('"' << broken << '"');
    CHECK_THAT(refusal(broken), test::says("expected two tokens with one space between them"));
  }
  CHECK_THAT(refusal("a c"), test::says("\"a c\", but no token is \"ac\""));
  CHECK_THAT(refusal("ac a"), test::says("but no token is \"ac\""));
  CHECK_THAT(refusal("a xyz"), test::says("but no token is \"xyz\""));
  CHECK_THAT(refusal("a \n"), test::says("\"a \\x0A\""));
  CHECK_THAT(refusal("a b"), test::says("which is there twice"));
  // A control token's Ġ is the letter, a byte's Ġ is the space.
  CHECK_THAT(refusal("Ġ <s>"), test::says("these tokens' kinds differ"));
  CHECK_THAT(refusal("<s> Ġ"), test::says("these tokens' kinds differ"));
}

TEST_CASE("A vocabulary without merges is one of bytes; without the list of them it is refused", "[tokenizer]") {
  auto const v = test::byte_level("gpt-2");
  CHECK(v.build().encode("ab") == ids{'a', 'b'});
  auto const file = test::without(v.file(), "tokenizer.ggml.merges");
  CHECK_THAT(test::error_of([&] { test::test_vocabulary::build(file); }).text, test::says("tokenizer.ggml.merges"));
}

TEST_CASE("Byte-level BPE gives back any bytes", "[tokenizer]") {
  std::mt19937 random(4);
  for (auto const name : {"gpt-2", "smollm", "llama-bpe", "qwen2"}) {
    auto v = test::byte_level(name);
    for (auto const& [left, right] : std::vector<std::pair<std::string, std::string>>{
             {"Ġ", "Ġ"}, {"Ã", "©"}, {"a", "b"}, {"'", "s"}, {"Ġ", "a"}, {"ä", "½"}, {"ä½", "ł"}, {"â", "ĸ"}})
      v.add_merge(left, right);
    v.add("<u>", token_kind::user_defined);
    v.add("aé", token_kind::user_defined);
    auto const t = v.build();
    for (int i = 0; i < 300; ++i) {
      auto const text =
          i % 2 ? test::random_utf8(random, random() % 80) : test::random_bytes_in_utf8(random, random() % 80);
      REQUIRE(t.decode(t.encode(text, {.add_special = false})) == text);
    }
  }
}

TEST_CASE("Long runs take no quadratic time", "[tokenizer]") {
  constexpr std::size_t length = 1 << 17;
  std::vector<std::string> const texts{std::string(8 * length, 'a'),     std::string(length, ' ') + "a",
                                       std::string(length, '\n') + " a", std::string(length, '1'),
                                       std::string(length, '\x80'),      std::string(length, '!')};
  for (auto const name : {"gpt-2", "smollm", "llama-bpe", "qwen2"}) {
    auto v = test::byte_level(name);
    for (std::string const letter : {"a", "Ġ", "Ċ", "1", "!"})
      for (std::string run = letter; run.size() < 16 * letter.size(); run += run) v.add_merge(run, run);
    auto const t = v.build();
    for (auto const& text : texts) {
      auto const got = t.encode(text, {.add_special = false});
      CHECK(t.decode(got) == text);
      if (text[0] == 'a') CHECK(got.size() == text.size() / 16);
    }
  }
}
