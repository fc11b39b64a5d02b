#pragma once
/// \file
/// SentencePiece's merging by score, with bytes for what the vocabulary cannot spell (`tokenizer.ggml.model` "llama").

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/gguf.hpp"
#include "runtime/tokenizer/merge_pairs.hpp"
#include "runtime/tokenizer/text_model.hpp"
#include "runtime/tokenizer/vocabulary.hpp"

namespace kvquant::runtime {

/// Spaces become ▁ (U+2581); characters are the first symbols; of all neighbours that make a token, those with the
/// highest score are joined first. SentencePiece reads a ▁ of the text itself as a space and replaces invalid UTF-8;
/// here both become byte tokens, which nothing merges with, so that decoding gives the text back. Where a byte has no
/// token the unknown token stands for it; a vocabulary that cannot spell a space gets none put before the text.
/// `tokens` must outlive this.
class sentencepiece_model final : public text_model {
 public:
  /// Throws `bad_file` for scores that are missing, NaN or not one a token, or an unknown token outside the vocabulary.
  sentencepiece_model(gguf_file const& file, vocabulary const& tokens);

  void encode(std::string_view text, std::vector<token_id>& ids) const override;
  std::string const& piece(token_id id) const override { return pieces_[static_cast<std::size_t>(id)]; }
  bool adds_space() const override { return adds_space_; }
  bool has_byte(unsigned char byte) const override { return byte_ids_[byte] != no_token; }
  bool adds_bos() const override { return true; }
  token_id default_bos() const override { return 1; }
  token_id default_eos() const override { return 2; }
  void add_to(content_hash& hash) const override;

 private:
  class run;

  token_id ordinary(std::string_view spelled) const;
  void emit_bytes(std::string_view bytes, std::vector<token_id>& ids) const;

  vocabulary const& tokens_;
  std::vector<std::string> pieces_;
  std::vector<double> scores_;
  std::array<token_id, 256> byte_ids_{};
  token_id unknown_ = 0;
  bool adds_space_ = true;
  std::size_t longest_ = 0;  // bytes of the longest spelling
};

}  // namespace kvquant::runtime
