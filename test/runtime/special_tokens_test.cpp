/// \file
/// Tokens written out in a text, against a search that tries every token at every place.

#include "runtime/tokenizer/special_tokens.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstddef>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/tokenizer/vocabulary.hpp"
#include "test/support/vocabularies.hpp"

using namespace kvquant;
using runtime::special_tokens;
using runtime::token_id;
using runtime::vocabulary;

namespace {

vocabulary read(std::vector<std::string> const& texts) {
  test::test_vocabulary v;
  for (auto const& text : texts) v.add(text);
  auto const bytes = v.file().bytes();
  return vocabulary(runtime::gguf_file::parse(bytes, "test.gguf"));
}

std::vector<token_id> all_of(vocabulary const& tokens) {
  std::vector<token_id> ids;
  for (token_id id = 0; id < tokens.size(); ++id) ids.push_back(id);
  return ids;
}

struct found {
  std::size_t begin, end;
  token_id id;
  bool operator==(found const&) const = default;
};

std::ostream& operator<<(std::ostream& out, found const& f) {
  return out << '[' << f.begin << ',' << f.end << ")=" << f.id;
}

std::optional<found> first(special_tokens const& special, std::string_view text, std::size_t from = 0) {
  auto const match = special.find(text, from);
  return match ? std::optional(found{match->begin, match->end, match->id}) : std::nullopt;
}

std::optional<found> first_naively(std::vector<std::string> const& texts, std::string_view text, std::size_t from) {
  for (std::size_t at = from; at < text.size(); ++at) {
    std::optional<found> longest;
    for (std::size_t i = 0; i < texts.size(); ++i) {
      if (texts[i].empty() || !text.substr(at).starts_with(texts[i])) continue;
      if (!longest || at + texts[i].size() > longest->end)
        longest = found{at, at + texts[i].size(), static_cast<token_id>(i)};
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

}  // namespace

TEST_CASE("The leftmost special token wins, then the longest", "[tokenizer]") {
  auto const tokens = read({"<a>", "<a>b", "b", "a>bcd", "<a>bcde"});
  special_tokens const special(tokens, all_of(tokens));
  CHECK(first(special, "x<a>") == found{1, 4, 0});
  CHECK(first(special, "x<a>b") == found{1, 5, 1});
  CHECK(first(special, "<a>bcd") == found{0, 4, 1});  // not the longer one that begins later
  CHECK(first(special, "<a>bcde") == found{0, 7, 4});
  CHECK(first(special, "<a") == std::nullopt);
  CHECK(first(special, "a>bc") == found{2, 3, 2});
  CHECK(first(special, "") == std::nullopt);
}

TEST_CASE("The search begins where it is told, and a token cut there is none", "[tokenizer]") {
  auto const tokens = read({"<a>", "a>"});
  special_tokens const special(tokens, all_of(tokens));
  CHECK(first(special, "<a><a>", 0) == found{0, 3, 0});
  CHECK(first(special, "<a><a>", 1) == found{1, 3, 1});
  CHECK(first(special, "<a><a>", 2) == found{3, 6, 0});
  CHECK(first(special, "<a><a>", 5) == std::nullopt);
  CHECK(first(special, "<a><a>", 6) == std::nullopt);
}

TEST_CASE("Only the ids asked for are found", "[tokenizer]") {
  auto const tokens = read({"<a>", "<b>", "<a><b>"});
  special_tokens const special(tokens, {1});
  CHECK(first(special, "<a><b>") == found{3, 6, 1});
  CHECK(first(special_tokens(tokens, {}), "<a><b>") == std::nullopt);
}

TEST_CASE("Special tokens are bytes: zero, 0xFF and halves of characters are found", "[tokenizer]") {
  using namespace std::string_literals;
  auto const tokens = read({"\0"s, "\xFF\xFE", "\xA9", "", "\xFF"});
  special_tokens const special(tokens, all_of(tokens));
  CHECK(first(special, "a\0"s) == found{1, 2, 0});
  CHECK(first(special, "\xFF\xFE") == found{0, 2, 1});
  CHECK(first(special, "\xFF\xFD") == found{0, 1, 4});
  CHECK(first(special, "é") == found{1, 2, 2});
  CHECK(first(special, "ab") == std::nullopt);  // the empty token is nowhere
}

TEST_CASE("Finding equals trying every token at every place", "[tokenizer]") {
  std::mt19937 random(21);
  std::string_view const letters = "ab<\xFF\x80";
  auto const draw = [&](std::size_t length, std::size_t kinds) {
    std::string out;
    while (out.size() < length) out += letters[random() % kinds];
    return out;
  };
  for (int round = 0; round < 300; ++round) {
    std::size_t const kinds = 2 + random() % 4;
    std::vector<std::string> texts{"unlike any other"};
    for (auto n = random() % 12; n > 0; --n)
      if (auto text = draw(1 + random() % 6, kinds); std::ranges::find(texts, text) == texts.end())
        texts.push_back(std::move(text));
    auto const tokens = read(texts);
    special_tokens const special(tokens, all_of(tokens));
    for (int i = 0; i < 20; ++i) {
      auto const text = draw(random() % 25, kinds);
      std::size_t const from = random() % (text.size() + 1);
      REQUIRE(first(special, text, from) == first_naively(texts, text, from));
    }
  }
}
