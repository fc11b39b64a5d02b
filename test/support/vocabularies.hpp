#pragma once
/// \file
/// Small vocabularies for tests of tokenizers, whole but for what a test takes away.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/gguf.hpp"
#include "runtime/tokenizer.hpp"
#include "runtime/tokenizer/byte_alphabet.hpp"
#include "runtime/tokenizer/vocabulary.hpp"
#include "test/support/gguf_writer.hpp"

namespace kvquant::test {

using runtime::token_id;
using runtime::token_kind;

struct test_vocabulary {
  std::vector<std::string> texts;
  std::vector<std::int32_t> kinds;
  std::vector<float> scores;        ///< only `llama` reads them
  std::vector<std::string> merges;  ///< only `gpt2` reads them
  gguf_writer metadata;             ///< everything else

  token_id add(std::string text, token_kind kind = token_kind::normal, float score = 0) {
    texts.push_back(std::move(text));
    kinds.push_back(static_cast<std::int32_t>(kind));
    scores.push_back(score);
    return static_cast<token_id>(texts.size() - 1);
  }

  /// The next merge by rank, and the token it makes unless that is there.
  token_id add_merge(std::string const& left, std::string const& right) {
    merges.push_back(left + " " + right);
    for (std::size_t id = 0; id < texts.size(); ++id)
      if (texts[id] == left + right) return static_cast<token_id>(id);
    return add(left + right);
  }

  gguf_writer file() const {
    gguf_writer out = metadata;
    out.set("tokenizer.ggml.tokens", texts).set("tokenizer.ggml.token_type", kinds);
    out.set("tokenizer.ggml.scores", scores).set("tokenizer.ggml.merges", merges);
    return out;
  }

  runtime::tokenizer build() const { return build(file()); }
  static runtime::tokenizer build(gguf_writer const& file) {
    auto const content = file.bytes();
    return runtime::tokenizer(runtime::gguf_file::parse(content, "test.gguf"));
  }
};

/// Byte-level BPE in which byte b is token b, without merges.
inline test_vocabulary byte_level(std::string_view pre_tokenizer) {
  test_vocabulary v;
  for (int byte = 0; byte < 256; ++byte) v.add(runtime::spell_bytes(std::string(1, static_cast<char>(byte))));
  v.metadata.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", pre_tokenizer);
  v.metadata.set("tokenizer.ggml.bos_token_id", 0u);
  return v;
}

/// SentencePiece in which 0, 1, 2 are <unk>, <s>, </s> and byte b is token 3 + b; no other tokens.
inline test_vocabulary byte_fallback() {
  test_vocabulary v;
  v.add("<unk>", token_kind::unknown);
  v.add("<s>", token_kind::control);
  v.add("</s>", token_kind::control);
  for (int byte = 0; byte < 256; ++byte)
    v.add(runtime::byte_token_text(static_cast<unsigned char>(byte)), token_kind::byte);
  v.metadata.set("tokenizer.ggml.model", "llama");
  return v;
}

/// Every name and alias.
inline std::vector<std::string> const pre_tokenizers{"gpt-2",     "smollm", "starcoder",        "refact",
                                                     "llama-bpe", "llama3", "llama-v3",         "falcon3",
                                                     "smaug-bpe", "qwen2",  "deepseek-r1-qwen", "megrez"};

/// Control tokens, then user-defined ones that begin alike, begin with a space, and end beyond ASCII.
inline std::vector<std::string> const special_texts{"<s>", "</s>", "<|im_start|>", "<u>", "<u><v>", " '", "bé"};

/// Those of `special_texts` that are not there yet.
inline void add_special_texts(test_vocabulary& v) {
  for (std::size_t i = 0; i < special_texts.size(); ++i)
    if (std::ranges::find(v.texts, special_texts[i]) == v.texts.end())
      v.add(special_texts[i], i < 3 ? token_kind::control : token_kind::user_defined);
}

/// `byte_level` with merges that meet one another, a word that no merge makes, and `special_texts`.
inline test_vocabulary many_merges(std::string_view pre_tokenizer) {
  auto v = byte_level(pre_tokenizer);
  for (auto const& [left, right] : std::vector<std::pair<std::string, std::string>>{{"Ġ", "Ġ"},
                                                                                    {"Ã", "©"},
                                                                                    {"a", "b"},
                                                                                    {"'", "s"},
                                                                                    {"Ġ", "a"},
                                                                                    {"Ġa", "b"},
                                                                                    {"ä", "½"},
                                                                                    {"ä½", "ł"},
                                                                                    {"1", "2"}})
    v.add_merge(left, right);
  v.add("ba");
  add_special_texts(v);
  return v;
}

/// `byte_fallback` with pieces that meet one another, and `special_texts`.
inline test_vocabulary many_pieces(bool space_prefix) {
  auto v = byte_fallback();
  float score = 0;
  for (auto const text : {"▁", "a", "b", "▁a", "▁▁", "ab", "é", "a▁", "你", "'s", "s", "'"})
    v.add(text, token_kind::normal, --score);
  v.metadata.set("tokenizer.ggml.add_space_prefix", space_prefix);
  add_special_texts(v);
  return v;
}

inline gguf_writer without(gguf_writer file, std::string_view key) {
  std::erase_if(file.entries, [&](auto const& e) { return e.key == key; });
  return file;
}

/// In place of what `key` was.
template <class T>
gguf_writer with(gguf_writer const& file, std::string const& key, T const& value) {
  return without(file, key).set(key, value);
}

}  // namespace kvquant::test
