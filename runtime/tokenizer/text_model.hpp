#pragma once
/// \file
/// What the two kinds of tokenizer do differently: ordinary text to ids, and a token's spelling to bytes.

#include <string>
#include <string_view>
#include <vector>

#include "runtime/content_hash.hpp"
#include "runtime/tokenizer.hpp"

namespace kvquant::runtime {

class text_model {
 public:
  virtual ~text_model() = default;

  /// Appends the ids of `text`, in which special tokens have no meaning. Not empty; any bytes.
  virtual void encode(std::string_view text, std::vector<token_id>& ids) const = 0;
  /// The bytes that `id` stands for inside a text.
  virtual std::string const& piece(token_id id) const = 0;
  /// Whether `encode` puts a space before its text, which decoding must take away again.
  virtual bool adds_space() const { return false; }
  /// Whether a lone `byte` has a token.
  virtual bool has_byte(unsigned char byte) const = 0;
  /// The name of the rule that cuts text into words; empty if there is none.
  virtual std::string_view pre_tokenizer_name() const { return {}; }
  /// Whether BOS and EOS are added if the metadata does not say.
  virtual bool adds_bos() const = 0;
  /// The ids where the metadata names none; `no_token` if this kind has none by convention.
  virtual token_id default_bos() const = 0;
  virtual token_id default_eos() const = 0;
  /// Everything that decides ids beyond the vocabulary.
  virtual void add_to(content_hash& hash) const = 0;
};

}  // namespace kvquant::runtime
