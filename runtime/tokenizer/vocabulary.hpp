#pragma once
/// \file
/// The tokens of a GGUF, checked.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/gguf.hpp"
#include "runtime/tokenizer.hpp"

namespace kvquant::runtime {

/// GGUF's own numbers.
enum class token_kind : std::uint8_t { undefined, normal, unknown, control, user_defined, unused, byte };

/// No id.
inline constexpr token_id no_token = -1;

class vocabulary {
 public:
  /// Longer than any real token; bounds the time that a hostile vocabulary can cost.
  static constexpr std::size_t max_token_bytes = 4096;

  /// Reads tokens and kinds; without kinds (`token_type`) every token is normal. Throws `bad_file` for no tokens,
  /// arrays of different lengths, a token that appears twice or is too long, an unknown kind, or a byte token that is
  /// not written <0xNN>.
  explicit vocabulary(gguf_file const& file);
  vocabulary(vocabulary const&) = delete;
  vocabulary& operator=(vocabulary const&) = delete;

  int size() const { return static_cast<int>(texts_.size()); }
  /// As the file spells it.
  std::string const& text(token_id id) const { return texts_[static_cast<std::size_t>(id)]; }
  token_kind kind(token_id id) const { return kinds_[static_cast<std::size_t>(id)]; }
  /// Makes up text: not control, user-defined, unknown or a byte.
  bool is_ordinary(token_id id) const;
  /// The token spelled so, or `no_token`. The empty text is no token's.
  token_id find(std::string_view text) const;

 private:
  std::vector<std::string> texts_;
  std::vector<token_kind> kinds_;
  std::unordered_map<std::string_view, token_id> ids_;  // keys point into texts_
};

/// The value of a byte token's text <0xNN>, or -1.
int byte_token_value(std::string_view text) noexcept;
/// The text of the byte token.
std::string byte_token_text(unsigned char byte);

}  // namespace kvquant::runtime
