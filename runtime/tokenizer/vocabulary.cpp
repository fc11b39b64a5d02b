#include "runtime/tokenizer/vocabulary.hpp"

#include <limits>

#include "kvquant/core/error.hpp"
#include "runtime/quote.hpp"

namespace kvquant::runtime {
namespace {

constexpr std::string_view tokens_key = "tokenizer.ggml.tokens";
constexpr std::string_view kinds_key = "tokenizer.ggml.token_type";
constexpr std::string_view hex_digits = "0123456789ABCDEF";

std::vector<token_kind> read_kinds(gguf_file const& file, std::size_t count) {
  if (!file.contains(kinds_key)) return std::vector(count, token_kind::normal);
  auto const& numbers = file.integers(kinds_key);
  require(numbers.size() == count, errc::bad_file, file.origin(), ": ", kinds_key, " has ", numbers.size(),
          " entries, expected one for each of the ", count, " tokens");
  std::vector<token_kind> kinds;
  kinds.reserve(count);
  for (std::int64_t const number : numbers) {
    require(number >= 0 && number <= static_cast<int>(token_kind::byte), errc::bad_file, file.origin(), ": ", kinds_key,
            " of token ", kinds.size(), " is ", number, ", expected 0 to 6");
    kinds.push_back(static_cast<token_kind>(number));
  }
  return kinds;
}

}  // namespace

vocabulary::vocabulary(gguf_file const& file) {
  auto const& texts = file.strings(tokens_key);
  require(!texts.empty() && texts.size() <= std::numeric_limits<token_id>::max(), errc::bad_file, file.origin(), ": ",
          tokens_key, " has ", texts.size(), " tokens, expected at least one and at most 2^31 - 1");
  kinds_ = read_kinds(file, texts.size());
  texts_.assign(texts.begin(), texts.end());
  ids_.reserve(texts_.size());
  for (token_id id = 0; id < size(); ++id) {
    std::string_view const spelled = text(id);  // of a std::string, quoted would be std::quoted
    if (spelled.size() > max_token_bytes)
      throw error{errc::bad_file, kvquant::text(file.origin(), ": token ", id, " has ", spelled.size(),
                                                " bytes, expected at most ", max_token_bytes)};
    if (kind(id) == token_kind::byte && byte_token_value(spelled) < 0)
      throw error{errc::bad_file,
                  kvquant::text(file.origin(), ": byte token ", id, " is ", quote(spelled), ", expected <0xNN>")};
    if (spelled.empty()) continue;
    if (auto const [other, fresh] = ids_.emplace(spelled, id); !fresh)
      throw error{errc::bad_file,
                  kvquant::text(file.origin(), ": tokens ", other->second, " and ", id, " are both ", quote(spelled))};
  }
}

bool vocabulary::is_ordinary(token_id id) const {
  return kind(id) == token_kind::normal || kind(id) == token_kind::unused || kind(id) == token_kind::undefined;
}

token_id vocabulary::find(std::string_view text) const {
  auto const found = ids_.find(text);
  return found == ids_.end() ? no_token : found->second;
}

int byte_token_value(std::string_view text) noexcept {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  auto const high = hex_digits.find(text[3]);
  auto const low = hex_digits.find(text[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return -1;
  return static_cast<int>(16 * high + low);
}

std::string byte_token_text(unsigned char byte) {
  return {'<', '0', 'x', hex_digits[byte >> 4], hex_digits[byte & 15], '>'};
}

}  // namespace kvquant::runtime
