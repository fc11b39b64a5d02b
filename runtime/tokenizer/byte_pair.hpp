#pragma once
/// \file
/// Byte-level byte pair encoding (`tokenizer.ggml.model` "gpt2").

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/gguf.hpp"
#include "runtime/tokenizer/merge_pairs.hpp"
#include "runtime/tokenizer/pre_tokenizer.hpp"
#include "runtime/tokenizer/text_model.hpp"
#include "runtime/tokenizer/vocabulary.hpp"

namespace kvquant::runtime {

/// Words start as bytes; the merge of lowest rank is done first. A byte that the vocabulary has no token for makes no
/// id, and nothing merges across it. `tokens` must outlive this.
class byte_pair_model final : public text_model {
 public:
  /// Throws `unsupported` for a missing or unknown pre-tokenizer, `bad_file` for a merge that is not two tokens which
  /// make a third.
  byte_pair_model(gguf_file const& file, vocabulary const& tokens);

  void encode(std::string_view text, std::vector<token_id>& ids) const override;
  std::string const& piece(token_id id) const override { return pieces_[static_cast<std::size_t>(id)]; }
  bool has_byte(unsigned char byte) const override { return byte_ids_[byte] != no_token; }
  std::string_view pre_tokenizer_name() const override { return words_.name(); }
  bool adds_bos() const override { return words_.adds_bos(); }
  token_id default_bos() const override { return no_token; }
  token_id default_eos() const override { return no_token; }
  void add_to(content_hash& hash) const override;

 private:
  using rank = std::uint32_t;

  void add_merge(std::string_view merge, rank r, std::string const& origin);
  void encode_word(std::string_view word, std::vector<token_id>& ids) const;
  void merge_bytes(std::vector<token_id>& symbols, std::vector<token_id>& ids) const;
  token_id whole_word(std::string_view word) const;
  std::optional<join_result<rank>> merge_of(token_id left, token_id right) const;

  vocabulary const& tokens_;
  pre_tokenizer words_;
  std::vector<std::string> pieces_;
  std::array<token_id, 256> byte_ids_{};
  std::unordered_map<std::uint64_t, join_result<rank>> merges_;  // key: left id · 2³² + right id
};

}  // namespace kvquant::runtime
