#pragma once
/// \file
/// Finds tokens that are written out in a text.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/tokenizer/vocabulary.hpp"

namespace kvquant::runtime {

/// Of matches that begin at different places the leftmost is taken, of those at one place the longest.
class special_tokens {
 public:
  struct match {
    std::size_t begin, end;
    token_id id;
  };

  /// `ids` of tokens in `tokens`, which must outlive this.
  special_tokens(vocabulary const& tokens, std::vector<token_id> const& ids);

  /// The first match in `text` at or after `from`.
  std::optional<match> find(std::string_view text, std::size_t from) const;

 private:
  using entry = std::pair<std::string_view, token_id>;
  std::optional<match> longest_at(std::string_view text, std::size_t begin) const;

  std::vector<entry> sorted_;
  std::array<std::uint32_t, 257> first_{};  // entries that begin with byte b are [first_[b], first_[b + 1])
};

}  // namespace kvquant::runtime
