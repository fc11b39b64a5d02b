/// \file
/// The first byte picks what the others are: a text for one of several good vocabularies, or a GGUF file. Any file is
/// a tokenizer or an error; every tokenizer gives its texts back.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/core/error.hpp"
#include "runtime/gguf.hpp"
#include "runtime/tokenizer.hpp"
#include "test/support/vocabularies.hpp"

namespace {

using kvquant::runtime::token_id;
using kvquant::runtime::tokenizer;

[[noreturn]] void fail(char const* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

void check_text(tokenizer const& t, std::string_view text) {
  for (bool const parse_special : {false, true}) {
    auto const ids = t.encode(text, {.add_special = false, .parse_special = parse_special});
    for (token_id const id : ids)
      if (id < 0 || id >= t.vocabulary_size()) fail("an id outside the vocabulary");
    if (t.decode(ids) != text) fail("the text does not come back");
    auto const whole = t.encode(text, {.add_special = true, .parse_special = parse_special});
    if (whole.size() != ids.size() + t.add_bos() + t.add_eos()) fail("not exactly BOS and EOS were added");
  }
}

std::string without_missing(tokenizer const& t, std::string text) {
  auto const missing = t.missing_bytes();
  std::erase_if(text, [&](char c) { return missing.find(c) != std::string::npos; });
  return text;
}

/// Tokens of the vocabulary itself are the texts that its merges and special tokens meet in.
void check_own_texts(tokenizer const& t) {
  std::string all;
  for (token_id id = 0; id < t.vocabulary_size() && all.size() < 4096; ++id) {
    all += t.piece(id);
    static_cast<void>(t.is_control(id));
  }
  check_text(t, without_missing(t, all));
  check_text(t, without_missing(t, "a b  é\xFF<s>▁ 1"));
}

void read_vocabulary(std::span<std::byte const> file) {
  try {
    check_own_texts(tokenizer(kvquant::runtime::gguf_file::parse(file, "fuzz")));
  } catch (kvquant::error const&) {
  }
}

std::vector<tokenizer> const& good_tokenizers() {
  static auto const all = [] {
    std::vector<tokenizer> made;
    for (bool const space_prefix : {true, false}) made.push_back(kvquant::test::many_pieces(space_prefix).build());
    for (auto const pre : {"gpt-2", "smollm", "llama-bpe", "qwen2"})
      made.push_back(kvquant::test::many_merges(pre).build());
    return made;
  }();
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  if (size == 0) return 0;
  auto const rest = std::as_bytes(std::span(data, size)).subspan(1);
  std::size_t const choice = data[0] % (good_tokenizers().size() + 1);
  if (choice == good_tokenizers().size())
    read_vocabulary(rest);
  else
    check_text(good_tokenizers()[choice], {reinterpret_cast<char const*>(rest.data()), rest.size()});
  return 0;
}
