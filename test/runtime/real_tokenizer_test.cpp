/// \file
/// The tokenizer of SmolLM2 (`KVQUANT_TEST_MODEL`) on real texts (the folder `KVQUANT_TEST_TEXT`).

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/gguf.hpp"
#include "runtime/tokenizer.hpp"
#include "runtime/tokenizer/byte_alphabet.hpp"
#include "test/support/random_text.hpp"

using namespace kvquant;
using runtime::gguf_file;
using runtime::token_id;
using runtime::tokenizer;
using ids = std::vector<token_id>;

namespace {

gguf_file model_file() {
  char const* const path = std::getenv("KVQUANT_TEST_MODEL");
  REQUIRE(path != nullptr);
  return gguf_file::open(path);
}

tokenizer const& model_tokenizer() {
  static tokenizer const t(model_file());
  return t;
}

std::optional<std::string> read_text(std::string const& name) {
  char const* const folder = std::getenv("KVQUANT_TEST_TEXT");
  std::ifstream file(std::filesystem::path(folder == nullptr ? "" : folder) / name, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

ids encode(std::string_view text) { return model_tokenizer().encode(text, {.add_special = false}); }

/// Each byte that no token stands for is dropped, and only those.
std::string expected_back(std::string text) {
  static std::string const missing = model_tokenizer().missing_bytes();
  std::erase_if(text, [](char c) { return missing.find(c) != std::string::npos; });
  return text;
}

bool comes_back(std::string const& text) { return model_tokenizer().decode(encode(text)) == expected_back(text); }

}  // namespace

TEST_CASE("The real tokenizer is what its metadata says", "[model]") {
  auto const file = model_file();
  auto const& t = model_tokenizer();
  auto const& texts = file.strings("tokenizer.ggml.tokens");
  CHECK(t.model() == "gpt2");
  CHECK(t.pre_tokenizer() == "smollm");
  CHECK(static_cast<std::size_t>(t.vocabulary_size()) == texts.size());
  CHECK(t.bos() == file.integer("tokenizer.ggml.bos_token_id"));
  CHECK(t.eos() == file.integer("tokenizer.ggml.eos_token_id"));
  CHECK(t.add_bos() == file.boolean("tokenizer.ggml.add_bos_token", false));
  CHECK(t.encode("a").size() == (t.add_bos() ? 2u : 1u) + (t.add_eos() ? 1u : 0u));
  std::string missing;
  for (int byte = 0; byte < 256; ++byte) {
    std::string const alone(1, static_cast<char>(byte));
    if (std::ranges::find(texts, runtime::spell_bytes(alone)) == texts.end()) missing += alone;
  }
  CHECK(t.missing_bytes() == missing);
}

TEST_CASE("Known texts have known tokens", "[model]") {
  CHECK(encode("Hello world") == ids{19556, 905});
  CHECK(encode("The quick brown fox jumps over the lazy dog.") ==
        ids{504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30});
  CHECK(encode("I'm 1234 years old") == ids{57, 5248, 216, 33, 34, 35, 36, 929, 1573});
  CHECK(encode("  def f(x):") == ids{216, 753, 275, 24, 104, 727});
  CHECK(encode("naïve café") == ids{3546, 46494, 37366});
  CHECK(encode("你好") == ids{18645, 250, 48392, 138});
  CHECK(encode("").empty());
}

TEST_CASE("Control tokens of the real vocabulary are read if asked for", "[model]") {
  auto const& t = model_tokenizer();
  CHECK(t.encode("<|im_start|>Hello<|im_end|>", {.add_special = false, .parse_special = true}) == ids{1, 19556, 2});
  auto const plain = encode("<|im_start|>Hello<|im_end|>");
  CHECK(plain.size() > 3);
  CHECK(std::ranges::none_of(plain, [&](token_id id) { return t.is_control(id); }));
}

namespace {

/// The rule itself, on spellings: again and again join the first pair of the lowest rank.
class literal_rule {
 public:
  explicit literal_rule(gguf_file const& file) {
    for (std::string_view const merge : file.strings("tokenizer.ggml.merges")) ranks_.emplace(merge, ranks_.size());
    for (std::string_view const token : file.strings("tokenizer.ggml.tokens"))
      ids_.emplace(token, static_cast<token_id>(ids_.size()));
  }

  ids operator()(std::string_view word) const {
    std::vector<std::string> parts;
    for (char const c : word) parts.push_back(runtime::spell_bytes(std::string(1, c)));
    while (true) {
      std::size_t lowest = std::numeric_limits<std::size_t>::max(), where = 0;
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
        auto const found = ranks_.find(parts[i] + " " + parts[i + 1]);
        if (found == ranks_.end() || found->second >= lowest) continue;
        lowest = found->second;
        where = i;
      }
      if (lowest == std::numeric_limits<std::size_t>::max()) break;
      parts[where] += parts[where + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(where) + 1);
    }
    ids out;
    for (auto const& part : parts) out.push_back(ids_.at(part));
    return out;
  }

 private:
  std::map<std::string, std::size_t> ranks_;
  std::map<std::string, token_id> ids_;
};

/// Invented words and, where the text is there, real ones; each is one word to the pre-tokenizer.
std::set<std::string> letter_words() {
  std::set<std::string> words{"a", " tokenization", "antidisestablishmentarianism", " Zürich", "ééé", " 你好世界"};
  std::mt19937 random(41);
  for (int i = 0; i < 300; ++i) {
    std::string word(random() % 2, ' ');
    for (auto n = 1 + random() % 15; n > 0; --n) word += "etaoinshrdluETAOIN"[random() % 18];
    words.insert(word);
  }
  auto const text = read_text("wikitext2_test.txt").value_or("");
  for (std::size_t at = 0; at < text.size() && words.size() < 4000;) {
    auto const is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    std::size_t end = at;
    while (end < text.size() && is_letter(text[end])) ++end;
    std::size_t const begin = at > 0 && text[at - 1] == ' ' ? at - 1 : at;
    if (end > at) words.insert(text.substr(begin, end - begin));
    at = end + 1;
  }
  return words;
}

}  // namespace

TEST_CASE("Words become what the literal rule makes of the real merges", "[model]") {
  literal_rule const literally(model_file());
  for (auto const& word : letter_words()) {
    INFO(word);
    REQUIRE(encode(word) == literally(word));
  }
}

TEST_CASE("Real texts come back, and WikiText-2's test set has its 304,978 tokens", "[model]") {
  std::size_t found = 0;
  for (auto const name : {"wikitext2_test.txt", "wikitext2_valid.txt", "evaluation.txt", "calibration.txt"}) {
    auto const text = read_text(name);
    if (!text) continue;
    ++found;
    INFO(name);
    auto const tokens = encode(*text);
    CHECK(model_tokenizer().decode(tokens) == expected_back(*text));
    if (name == std::string_view("wikitext2_test.txt")) CHECK(tokens.size() == 304'978);
  }
  if (found == 0) WARN("skipped: KVQUANT_TEST_TEXT names no folder with a known text");
  if (!read_text("wikitext2_test.txt")) WARN("skipped: no wikitext2_test.txt to count the tokens of");
}

TEST_CASE("Random texts come back from the real tokenizer", "[model]") {
  std::mt19937 random(42);
  for (int i = 0; i < 2000; ++i) {
    REQUIRE(comes_back(test::random_utf8(random, random() % 80)));
    REQUIRE(comes_back(test::random_bytes_in_utf8(random, random() % 80)));
    std::string bytes(random() % 200, '\0');
    std::ranges::generate(bytes, [&] { return static_cast<char>(random() & 0xFF); });
    REQUIRE(comes_back(bytes));
  }
}
