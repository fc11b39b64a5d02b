#pragma once
/// \file
/// Cuts text into the words within which byte-level BPE may merge.

#include <memory>
#include <string_view>
#include <vector>

namespace kvquant::runtime {

class pre_tokenizer {
 public:
  /// By GGUF's name (`tokenizer.ggml.pre`) or one of its aliases. Throws `unsupported` listing the known ones.
  explicit pre_tokenizer(std::string_view name);
  pre_tokenizer(pre_tokenizer&&) noexcept;
  ~pre_tokenizer();

  /// The words of `text`, in order and without gaps. Bytes that are not UTF-8 make words of their own: nothing looks
  /// ahead or runs across them. Linear time on well-behaved and on hostile text.
  std::vector<std::string_view> split(std::string_view text) const;

  /// The name asked for, not the one that an alias stands for.
  std::string_view name() const;
  /// A word that is a token is that token, whatever merges would make of it.
  bool whole_words_first() const;
  /// What holds unless the metadata says otherwise.
  bool adds_bos() const;

 private:
  struct state;
  std::unique_ptr<state> state_;
};

}  // namespace kvquant::runtime
