#include "runtime/tokenizer/byte_pair.hpp"

#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/quote.hpp"
#include "runtime/tokenizer/byte_alphabet.hpp"

namespace kvquant::runtime {
namespace {

constexpr std::string_view pre_key = "tokenizer.ggml.pre";
constexpr std::string_view merges_key = "tokenizer.ggml.merges";

std::uint64_t pair_key(token_id left, token_id right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

/// Control and user-defined tokens are spelled as they are, all others in the byte alphabet.
std::string piece_of(vocabulary const& tokens, token_id id) {
  std::string const& spelled = tokens.text(id);
  if (tokens.kind(id) == token_kind::byte) return {static_cast<char>(byte_token_value(spelled))};
  if (!tokens.is_ordinary(id)) return spelled;
  return unspell_bytes(spelled).value_or(spelled);
}

}  // namespace

byte_pair_model::byte_pair_model(gguf_file const& file, vocabulary const& tokens)
    : tokens_(tokens), words_(file.string_or(pre_key, "")) {
  pieces_.reserve(static_cast<std::size_t>(tokens.size()));
  for (token_id id = 0; id < tokens.size(); ++id) pieces_.push_back(piece_of(tokens, id));
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte)
    byte_ids_[byte] = whole_word(std::string(1, static_cast<char>(byte)));
  auto const& merges = file.strings(merges_key);
  merges_.reserve(merges.size());
  for (std::string_view const merge : merges) add_merge(merge, static_cast<rank>(merges_.size()), file.origin());
}

void byte_pair_model::add_merge(std::string_view merge, rank r, std::string const& origin) {
  auto const refuse = [&](auto const&... why) {
    throw error{errc::bad_file, text(origin, ": merge ", r, " is ", quote(merge), ", ", why...)};
  };
  auto const space = merge.find(' ');
  if (space == 0 || space >= merge.size() - 1 || merge.find(' ', space + 1) != std::string_view::npos)
    refuse("expected two tokens with one space between them");
  std::string joined(merge);
  joined.erase(space, 1);
  auto const known = [&](std::string_view spelled) {
    token_id const id = tokens_.find(spelled);
    if (id == no_token) refuse("but no token is ", quote(spelled));
    return id;
  };
  token_id const left = known(merge.substr(0, space));
  token_id const right = known(merge.substr(space + 1));
  token_id const id = known(joined);
  // A control token is spelled in plain text, so its spelling may fit where its meaning does not.
  if (piece(left) + piece(right) != piece(id)) refuse("but these tokens' kinds differ");
  if (!merges_.emplace(pair_key(left, right), join_result<rank>{r, id}).second) refuse("which is there twice");
}

/// A token that is no control token and decodes to `word`.
token_id byte_pair_model::whole_word(std::string_view word) const {
  token_id const id = tokens_.find(spell_bytes(word));
  return id != no_token && tokens_.kind(id) != token_kind::control && piece(id) == word ? id : no_token;
}

std::optional<join_result<byte_pair_model::rank>> byte_pair_model::merge_of(token_id left, token_id right) const {
  auto const found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? std::nullopt : std::optional(found->second);
}

void byte_pair_model::merge_bytes(std::vector<token_id>& symbols, std::vector<token_id>& ids) const {
  merge_pairs(
      symbols,
      [&](std::uint32_t left, std::uint32_t right, std::uint32_t) { return merge_of(symbols[left], symbols[right]); },
      [&](std::uint32_t, std::uint32_t, token_id id) { ids.push_back(id); });
  symbols.clear();
}

void byte_pair_model::encode_word(std::string_view word, std::vector<token_id>& ids) const {
  if (words_.whole_words_first()) {
    if (token_id const id = whole_word(word); id != no_token) {
      ids.push_back(id);
      return;
    }
  }
  std::vector<token_id> symbols;
  symbols.reserve(word.size());
  for (char const c : word) {
    token_id const id = byte_ids_[static_cast<unsigned char>(c)];
    if (id == no_token)
      merge_bytes(symbols, ids);
    else
      symbols.push_back(id);
  }
  merge_bytes(symbols, ids);
}

void byte_pair_model::encode(std::string_view text, std::vector<token_id>& ids) const {
  // A word seen before is copied from where its ids already are.
  struct slice {
    std::size_t begin, count;
  };
  std::unordered_map<std::string_view, slice> seen;
  for (std::string_view const word : words_.split(text)) {
    auto const [found, fresh] = seen.try_emplace(word, slice{ids.size(), 0});
    if (fresh) {
      encode_word(word, ids);
      found->second.count = ids.size() - found->second.begin;
    } else {
      slice const from = found->second;
      for (std::size_t i = 0; i < from.count; ++i) ids.push_back(token_id{ids[from.begin + i]});
    }
  }
}

void byte_pair_model::add_to(content_hash& hash) const {
  std::vector<std::uint64_t> in_order(merges_.size());
  for (auto const& [key, made] : merges_) in_order[made.cost] = key;
  hash.add(std::uint64_t{in_order.size()});
  for (std::uint64_t const key : in_order) hash.add(key);
}

}  // namespace kvquant::runtime
