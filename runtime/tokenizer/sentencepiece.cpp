#include "runtime/tokenizer/sentencepiece.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kvquant/core/error.hpp"
#include "runtime/tokenizer/utf8.hpp"

namespace kvquant::runtime {
namespace {

constexpr std::string_view scores_key = "tokenizer.ggml.scores";
constexpr std::string_view unknown_key = "tokenizer.ggml.unknown_token_id";
constexpr std::string_view space_prefix_key = "tokenizer.ggml.add_space_prefix";
constexpr std::string_view space_mark = "\u2581";

std::string text_of(vocabulary const& tokens, token_id id) {
  std::string_view spelled = tokens.text(id);
  if (tokens.kind(id) == token_kind::byte) return {static_cast<char>(byte_token_value(spelled))};
  if (!tokens.is_ordinary(id)) return std::string(spelled);
  std::string piece;
  for (auto at = spelled.find(space_mark); at != std::string_view::npos; at = spelled.find(space_mark)) {
    piece.append(spelled.substr(0, at)) += ' ';
    spelled.remove_prefix(at + space_mark.size());
  }
  return piece.append(spelled);
}

}  // namespace

sentencepiece_model::sentencepiece_model(gguf_file const& file, vocabulary const& tokens)
    : tokens_(tokens), scores_(file.numbers(scores_key)), adds_space_(file.boolean(space_prefix_key, true)) {
  auto const count = static_cast<std::size_t>(tokens.size());
  require(scores_.size() == count, errc::bad_file, file.origin(), ": ", scores_key, " has ", scores_.size(),
          " entries, expected one for each of the ", count, " tokens");
  auto const broken = std::ranges::find_if(scores_, [](double score) { return std::isnan(score); });
  require(broken == scores_.end(), errc::bad_file, file.origin(), ": the score of token ", broken - scores_.begin(),
          " is not a number");
  auto const unknown = file.integer_or(unknown_key, 0);
  require(unknown >= 0 && unknown < tokens.size(), errc::bad_file, file.origin(), ": ", unknown_key, " is ", unknown,
          ", expected an id below ", count);
  unknown_ = static_cast<token_id>(unknown);
  pieces_.reserve(count);
  for (token_id id = 0; id < tokens.size(); ++id) {
    pieces_.push_back(text_of(tokens, id));
    longest_ = std::max(longest_, tokens.text(id).size());
  }
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    token_id const id = tokens.find(byte_token_text(static_cast<unsigned char>(byte)));
    byte_ids_[byte] = id != no_token && tokens.kind(id) == token_kind::byte ? id : no_token;
  }
  // The unknown token in its place could not be told from one that the text needs.
  if (!has_byte(' ') && ordinary(space_mark) == no_token) adds_space_ = false;
}

token_id sentencepiece_model::ordinary(std::string_view spelled) const {
  if (spelled.size() > longest_) return no_token;
  token_id const id = tokens_.find(spelled);
  return id != no_token && tokens_.is_ordinary(id) ? id : no_token;
}

void sentencepiece_model::emit_bytes(std::string_view bytes, std::vector<token_id>& ids) const {
  for (char const byte : bytes) {
    token_id const id = byte_ids_[static_cast<unsigned char>(byte)];
    ids.push_back(id == no_token ? unknown_ : id);
  }
}

/// Characters that may merge with one another, with spaces already marked.
class sentencepiece_model::run {
 public:
  explicit run(sentencepiece_model const& model) : model_(model) {}

  void add(std::string_view character) {
    std::string_view const spelled = character == " " ? space_mark : character;
    starts_.push_back(static_cast<std::uint32_t>(spelled_.size()));
    symbols_.push_back(model_.ordinary(spelled));
    spelled_ += spelled;
  }

  /// Appends the ids and empties the run.
  void finish(std::vector<token_id>& ids) {
    starts_.push_back(static_cast<std::uint32_t>(spelled_.size()));
    merge_pairs(
        symbols_, [&](std::uint32_t left, std::uint32_t, std::uint32_t end) { return join(slice(left, end)); },
        [&](std::uint32_t begin, std::uint32_t end, token_id id) {
          if (id != no_token)
            ids.push_back(id);
          else
            model_.emit_bytes(slice(begin, end) == space_mark ? " " : slice(begin, end), ids);
        });
    starts_.clear();
    symbols_.clear();
    spelled_.clear();
  }

 private:
  std::string_view slice(std::uint32_t begin, std::uint32_t end) const {
    return std::string_view(spelled_).substr(starts_[begin], starts_[end] - starts_[begin]);
  }

  std::optional<join_result<double>> join(std::string_view spelled) const {
    token_id const id = model_.ordinary(spelled);
    if (id == no_token) return std::nullopt;
    return join_result<double>{-model_.scores_[static_cast<std::size_t>(id)], id};
  }

  sentencepiece_model const& model_;
  std::string spelled_;
  std::vector<std::uint32_t> starts_;  // of each character in spelled_, and its end
  std::vector<token_id> symbols_;
};

void sentencepiece_model::encode(std::string_view text, std::vector<token_id>& ids) const {
  run characters(*this);
  if (adds_space_) characters.add(" ");
  while (!text.empty()) {
    std::size_t const length = utf8_length(text);
    std::string_view const character = text.substr(0, std::max(length, std::size_t{1}));
    if (length == 0 || character == space_mark) {
      characters.finish(ids);
      emit_bytes(character, ids);
    } else {
      characters.add(character);
    }
    text.remove_prefix(character.size());
  }
  characters.finish(ids);
}

void sentencepiece_model::add_to(content_hash& hash) const {
  for (double const score : scores_) hash.add(std::bit_cast<std::uint64_t>(score));
  hash.add(static_cast<std::uint64_t>(unknown_));
  hash.add(std::uint64_t{adds_space_});
}

}  // namespace kvquant::runtime
