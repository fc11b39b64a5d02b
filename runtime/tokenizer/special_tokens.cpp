#include "runtime/tokenizer/special_tokens.hpp"

#include <algorithm>
#include <span>

namespace kvquant::runtime {
namespace {

unsigned char byte_at(std::string_view text, std::size_t i) { return static_cast<unsigned char>(text[i]); }

}  // namespace

special_tokens::special_tokens(vocabulary const& tokens, std::vector<token_id> const& ids) {
  for (token_id const id : ids)
    if (!tokens.text(id).empty()) sorted_.emplace_back(tokens.text(id), id);
  std::ranges::sort(sorted_);
  for (entry const& e : sorted_) ++first_[byte_at(e.first, 0) + 1u];
  for (std::size_t b = 1; b < first_.size(); ++b) first_[b] += first_[b - 1];
}

std::optional<special_tokens::match> special_tokens::find(std::string_view text, std::size_t from) const {
  if (sorted_.empty()) return std::nullopt;
  for (std::size_t begin = from; begin < text.size(); ++begin)
    if (auto const found = longest_at(text, begin)) return found;
  return std::nullopt;
}

std::optional<special_tokens::match> special_tokens::longest_at(std::string_view text, std::size_t begin) const {
  unsigned char const lead = byte_at(text, begin);
  std::span<entry const> agreeing(sorted_.data() + first_[lead], first_[lead + 1u] - first_[lead]);
  std::optional<match> longest;
  // Invariant: all of `agreeing` share their first `depth` bytes with the text; the shortest comes first.
  for (std::size_t depth = 1; !agreeing.empty(); ++depth) {
    if (agreeing.front().first.size() == depth) {
      longest = match{begin, begin + depth, agreeing.front().second};
      agreeing = agreeing.subspan(1);
    }
    if (begin + depth >= text.size()) break;
    auto const byte = byte_at(text, begin + depth);
    auto const byte_of = [&](entry const& e) { return byte_at(e.first, depth); };
    auto const from = std::ranges::lower_bound(agreeing, byte, {}, byte_of);
    auto const to = std::ranges::upper_bound(agreeing, byte, {}, byte_of);
    agreeing = {from, to};
  }
  return longest;
}

}  // namespace kvquant::runtime
