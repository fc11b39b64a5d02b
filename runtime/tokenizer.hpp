#pragma once
/// \file
/// Tokenizers rebuilt from a GGUF's own metadata: byte-level BPE and SentencePiece-style `llama`.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/gguf.hpp"

namespace kvquant::runtime {

using token_id = std::int32_t;

struct encode_options {
  bool add_special = true;  ///< put BOS (and EOS) where the metadata asks for them (`add_bos_token`, `add_eos_token`)
  /// Recognise control tokens written out in the text ("<|im_start|>"); user-defined tokens always are. The leftmost
  /// match wins, then the longest.
  bool parse_special = false;
};

class tokenizer {
 public:
  /// Copies what it needs, so `file` may go. Throws `unsupported` naming the model or pre-tokenizer that is not known,
  /// `bad_file` for broken vocabularies.
  explicit tokenizer(gguf_file const& file);
  tokenizer(tokenizer&&) noexcept;
  tokenizer& operator=(tokenizer&&) noexcept;
  ~tokenizer();

  /// Any bytes are accepted, up to 1 GiB; no normalisation. decode(encode(s, {.add_special = false})) == s for every s
  /// without `missing_bytes()`, invalid UTF-8 included. May be called from many threads at once.
  std::vector<token_id> encode(std::string_view text, encode_options options = {}) const;
  /// Special tokens are written out. Throws `bad_value` for an id outside the vocabulary.
  std::string decode(std::span<token_id const> ids) const;
  std::string piece(token_id id) const;  ///< what `id` decodes to inside a text

  /// Bytes that no token stands for: some byte-level vocabularies leave out rare ones. BPE drops them from a text, as
  /// other runtimes do; `llama` puts its unknown token.
  std::string missing_bytes() const;

  int vocabulary_size() const;
  token_id bos() const;  ///< -1 if there is none
  token_id eos() const;  ///< -1 if there is none
  bool add_bos() const;
  bool add_eos() const;
  bool is_control(token_id id) const;
  std::string_view model() const;          ///< "gpt2" or "llama", as in the metadata
  std::string_view pre_tokenizer() const;  ///< "smollm", "llama-bpe", …; empty for "llama"
  /// XXH3-128 of everything that decides ids (model, pre-tokenizer, tokens, merges, flags), 32 hex digits.
  std::string const& hash() const;

 private:
  struct state;
  std::unique_ptr<state> state_;
};

}  // namespace kvquant::runtime
