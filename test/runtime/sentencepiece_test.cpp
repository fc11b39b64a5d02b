/// \file
/// SentencePiece merging against results worked out by hand, and against the rule carried out literally.

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "runtime/tokenizer.hpp"
#include "test/support/random_text.hpp"
#include "test/support/thrown.hpp"
#include "test/support/vocabularies.hpp"

using namespace kvquant;
using runtime::token_id;
using runtime::token_kind;
using ids = std::vector<token_id>;

namespace {

constexpr token_id byte_token(int byte) { return 3 + byte; }

struct scored {
  std::string text;
  float score;
};

/// Pieces from 259 on, after <unk>, <s>, </s> and the bytes; no BOS.
test::test_vocabulary with_pieces(std::vector<scored> const& pieces, bool space_prefix = false) {
  auto v = test::byte_fallback();
  for (auto const& p : pieces) v.add(p.text, token_kind::normal, p.score);
  v.metadata.set("tokenizer.ggml.add_bos_token", false).set("tokenizer.ggml.add_space_prefix", space_prefix);
  return v;
}

}  // namespace

TEST_CASE("The pair with the highest score goes first", "[tokenizer]") {
  auto const high_left = with_pieces({{"a", 0}, {"b", 0}, {"c", 0}, {"ab", -1}, {"bc", -2}}).build();
  CHECK(high_left.encode("abc") == ids{262, 261});
  auto const high_right = with_pieces({{"a", 0}, {"b", 0}, {"c", 0}, {"ab", -2}, {"bc", -1}}).build();
  CHECK(high_right.encode("abc") == ids{259, 263});
  auto const whole = with_pieces({{"a", 0}, {"b", 0}, {"c", 0}, {"ab", -2}, {"bc", -1}, {"abc", -9}}).build();
  CHECK(whole.encode("abc") == ids{264});
}

TEST_CASE("Of pairs with equal scores the leftmost goes first", "[tokenizer]") {
  auto const t = with_pieces({{"a", 0}, {"aa", -1}, {"aaaa", -2}}).build();
  CHECK(t.encode("aaa") == ids{260, 259});
  CHECK(t.encode("aaaaaaa") == ids{261, 260, 259});
}

TEST_CASE("A token can only be reached through tokens", "[tokenizer]") {
  auto const t = with_pieces({{"a", 0}, {"b", 0}, {"c", 0}, {"abc", -1}}).build();
  CHECK(t.encode("abc") == ids{259, 260, 261});
}

TEST_CASE("Spaces are marked, and one is put before the text", "[tokenizer]") {
  std::vector<scored> const pieces{{"▁", -5}, {"a", -6}, {"b", -7}, {"▁a", -1}, {"▁b", -2}, {"▁▁", -3}};
  auto const t = with_pieces(pieces, true).build();
  CHECK(t.encode("a b") == ids{262, 263});
  CHECK(t.encode("b") == ids{263});
  CHECK(t.encode(" a") == ids{259, 262});  // ▁▁a: ▁a scores higher than ▁▁
  CHECK(t.encode("  ") == ids{264, 259});
  CHECK(t.encode("") == ids{});
  CHECK(t.piece(262) == " a");
  CHECK(t.decode(ids{262, 263}) == "a b");
  CHECK(t.decode(ids{259, 262}) == " a");
  auto const bare = with_pieces(pieces, false).build();
  CHECK(bare.encode("a b") == ids{260, 263});
  CHECK(bare.decode(ids{262, 263}) == " a b");
}

TEST_CASE("Runs of spaces and lines that are user-defined go before pieces, the longest first", "[tokenizer]") {
  auto v = with_pieces({{"a", 0}, {"\u2581", 0}, {"\u2581a", -1}, {"\u2581\u2581", -2}});  // 259 to 262
  token_id const lines = v.add("\n\n", token_kind::user_defined), line = v.add("\n", token_kind::user_defined);
  token_id const three = v.add("   ", token_kind::user_defined), two = v.add("  ", token_kind::user_defined);
  token_id const turn = v.add("<turn>", token_kind::control);
  auto const t = v.build();
  CHECK(t.encode("a a") == ids{259, 261});
  CHECK(t.encode("a  a") == ids{259, two, 259});
  CHECK(t.encode("a    a") == ids{259, three, 261});
  CHECK(t.encode("a\n\n\n a") == ids{259, lines, line, 261});
  CHECK(t.encode("<turn>a", {.parse_special = true}) == ids{turn, 259});
  for (std::string const text : {" a", "  a\n\n a", "\n\n\n   a  "}) CHECK(t.decode(t.encode(text)) == text);
}

TEST_CASE("What has no piece becomes bytes", "[tokenizer]") {
  auto const t = with_pieces({{"▁", 0}, {"a", 0}}).build();
  CHECK(t.encode("aé") == ids{260, byte_token(0xC3), byte_token(0xA9)});
  CHECK(t.encode("\n") == ids{byte_token('\n')});
  CHECK(t.encode("\xFF"
                 "a\xE4\xBD") == ids{byte_token(0xFF), 260, byte_token(0xE4), byte_token(0xBD)});
  CHECK(t.piece(byte_token('\n')) == "\n");
  auto const without_mark = with_pieces({{"a", 0}}, true).build();
  CHECK(without_mark.encode("a a") == ids{byte_token(' '), 259, byte_token(' '), 259});
  CHECK(without_mark.decode(without_mark.encode("a a")) == "a a");
}

TEST_CASE("A ▁ of the text is not a space", "[tokenizer]") {
  auto const t = with_pieces({{"▁", 0}, {"a", 0}, {"▁a", 1}}, true).build();
  ids const mark{byte_token(0xE2), byte_token(0x96), byte_token(0x81)};
  CHECK(t.encode("▁a") == ids{259, mark[0], mark[1], mark[2], 260});
  CHECK(t.encode(" a") == ids{259, 261});
  for (auto const text : {"▁", "▁a", "a▁", " ▁ ", "▁▁ a"}) CHECK(t.decode(t.encode(text)) == text);
}

TEST_CASE("Without byte tokens the unknown token stands in", "[tokenizer]") {
  test::test_vocabulary v;
  v.add("<unk>", token_kind::unknown);
  v.add("a");
  v.metadata.set("tokenizer.ggml.model", "llama").set("tokenizer.ggml.add_bos_token", false);
  auto const t = v.build();
  CHECK(t.encode("ab a") == ids{1, 0, 0, 1});
  CHECK(t.missing_bytes().size() == 256);
}

TEST_CASE("A vocabulary that cannot spell a space gets none put before the text", "[tokenizer]") {
  auto v = with_pieces({{"a", 0}}, true);
  v.kinds[byte_token(' ')] = static_cast<std::int32_t>(token_kind::unused);
  v.texts[byte_token(' ')] = "[no space]";
  auto const t = v.build();
  CHECK(t.missing_bytes() == " ");
  CHECK(t.encode("a\n") == ids{259, byte_token('\n')});
  CHECK(t.decode(t.encode("a\n")) == "a\n");
  v.add("▁");
  CHECK(v.build().encode("a") == ids{260, 259});
}

TEST_CASE("Only ordinary tokens make up text", "[tokenizer]") {
  auto v = with_pieces({{"<", 0}, {"s", 0}, {">", 0}, {"<s", 0}, {"0", 0}, {"x", 0}, {"A", 0}, {"<0", 0}, {"<0x", 0}});
  for (auto const text : {"<0x0", "<0x0A"}) v.add(text);
  auto const t = v.build();
  CHECK(t.encode("<s>") == ids{262, 261});
  CHECK(t.decode(t.encode("<0x0A>")) == "<0x0A>");
}

namespace {

/// The rule itself: again and again join the first pair that makes the token with the highest score.
std::vector<std::string> merge_literally(std::vector<std::string> symbols, std::vector<scored> const& pieces) {
  while (true) {
    float best = 0;
    std::size_t where = symbols.size();
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      auto const found = std::ranges::find(pieces, symbols[i] + symbols[i + 1], &scored::text);
      if (found != pieces.end() && (where == symbols.size() || found->score > best)) {
        best = found->score;
        where = i;
      }
    }
    if (where == symbols.size()) return symbols;
    symbols[where] += symbols[where + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
}

}  // namespace

TEST_CASE("Joining equals the literal rule on random pieces", "[tokenizer]") {
  std::mt19937 random(5);
  for (int vocabulary = 0; vocabulary < 40; ++vocabulary) {
    std::vector<scored> pieces{{"a", 0}, {"b", 0}, {"é", 0}};
    for (int i = 0; i < 25; ++i) {
      std::string const made = pieces[random() % pieces.size()].text + pieces[random() % pieces.size()].text;
      bool const known = std::ranges::find(pieces, made, &scored::text) != pieces.end();
      if (made.size() < 9 && !known) pieces.push_back({made, static_cast<float>(random() % 8)});
    }
    auto const t = with_pieces(pieces).build();
    for (int i = 0; i < 50; ++i) {
      std::vector<std::string> characters;
      std::string text;
      for (auto n = random() % 40; n > 0; --n) text += characters.emplace_back(pieces[random() % 3].text);
      std::vector<std::string> got;
      for (token_id const id : t.encode(text)) got.push_back(t.piece(id));
      REQUIRE(got == merge_literally(characters, pieces));
    }
  }
}

TEST_CASE("Infinite scores are scores", "[tokenizer]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  auto const t = with_pieces({{"a", 0}, {"b", 0}, {"ab", -infinity}, {"ba", infinity}}).build();
  CHECK(t.encode("abab") == ids{259, 262, 260});
  CHECK(t.encode("aab") == ids{259, 261});
}

TEST_CASE("Scores that are missing, too few or no numbers are refused", "[tokenizer]") {
  auto const refusal = [](std::vector<float> const& scores) {
    auto v = with_pieces({{"a", 0}});
    v.scores = scores;
    auto const error = test::error_of([&] { v.build(); });
    CHECK(error.code == errc::bad_file);
    return error.text;
  };
  CHECK_THAT(refusal({}), test::says("tokenizer.ggml.scores has 0 entries, expected one for each of the 260 tokens"));
  CHECK_THAT(refusal(std::vector<float>(261)), test::says("has 261 entries"));
  std::vector<float> scores(260);
  scores[258] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THAT(refusal(scores), test::says("test.gguf: the score of token 258 is not a number"));
  auto const file = test::without(with_pieces({}).file(), "tokenizer.ggml.scores");
  CHECK_THAT(test::error_of([&] { test::test_vocabulary::build(file); }).text, test::says("tokenizer.ggml.scores"));
}

TEST_CASE("The unknown token is the one that the file names", "[tokenizer]") {
  auto v = with_pieces({{"a", 0}, {"?", 0}});
  v.texts[byte_token('b')] = "[no byte]";
  v.kinds[byte_token('b')] = static_cast<std::int32_t>(token_kind::unused);
  CHECK(v.build().encode("ab") == ids{259, 0});
  CHECK(v.build().missing_bytes() == "b");
  auto const named = [&](int id) {
    return test::test_vocabulary::build(test::with(v.file(), "tokenizer.ggml.unknown_token_id", id));
  };
  CHECK(named(260).encode("ab") == ids{259, 260});
  for (int const outside : {-1, 261}) {
    auto const error = test::error_of([&] { named(outside); });
    CHECK(error.code == errc::bad_file);
    CHECK_THAT(error.text, test::says("is " + std::to_string(outside) + ", expected an id below 261"));
  }
}

TEST_CASE("SentencePiece gives back any bytes", "[tokenizer]") {
  std::mt19937 random(6);
  for (bool const space_prefix : {true, false}) {
    auto v = with_pieces({{"▁", 0}, {"a", 0}, {"b", 0}, {"▁a", -1}, {"▁▁", -2}, {"ab", -3}, {"é", -4}, {"a▁", 1}},
                         space_prefix);
    v.add("<u>", token_kind::user_defined);
    v.add("b b", token_kind::user_defined);
    v.add(" '", token_kind::user_defined);
    auto const t = v.build();
    for (int i = 0; i < 500; ++i) {
      auto text = i % 2 ? test::random_utf8(random, random() % 60) : test::random_bytes_in_utf8(random, random() % 60);
      if (i % 3 == 0) text.insert(text.size() / 2, "<u>b b <u><u> ▁");
      REQUIRE(t.decode(t.encode(text)) == text);
    }
  }
}

TEST_CASE("A million equal characters take no quadratic time", "[tokenizer]") {
  std::vector<scored> pieces{{"▁", 0}};
  for (std::string run = "a"; run.size() <= 16; run += run) pieces.push_back({run, -static_cast<float>(run.size())});
  auto const t = with_pieces(pieces).build();
  std::string const text(1'000'000, 'a');
  auto const got = t.encode(text);
  CHECK(got.size() == text.size() / 16);
  CHECK(t.decode(got) == text);
  std::string const marks(300'000, '\x81');
  CHECK(t.decode(t.encode(marks)) == marks);
}
