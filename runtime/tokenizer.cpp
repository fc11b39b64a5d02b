#include "runtime/tokenizer.hpp"

#include <limits>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/content_hash.hpp"
#include "runtime/quote.hpp"
#include "runtime/tokenizer/byte_pair.hpp"
#include "runtime/tokenizer/sentencepiece.hpp"
#include "runtime/tokenizer/special_tokens.hpp"
#include "runtime/tokenizer/vocabulary.hpp"

namespace kvquant::runtime {
namespace {

std::unique_ptr<text_model> make_model(gguf_file const& file, vocabulary const& tokens) {
  auto const name = file.string("tokenizer.ggml.model");
  if (name == "gpt2") return std::make_unique<byte_pair_model>(file, tokens);
  if (name == "llama") return std::make_unique<sentencepiece_model>(file, tokens);
  throw error{errc::unsupported,
              text(file.origin(), ": tokenizer model ", quote(name), " is not known; known are gpt2, llama")};
}

/// A default outside the vocabulary means that there is no such token; one that the file names must be inside.
token_id read_id(gguf_file const& file, std::string_view key, token_id otherwise, int size) {
  if (!file.contains(key)) return otherwise < size ? otherwise : no_token;
  std::int64_t const id = file.integer(key);
  require(id >= 0 && id < size, errc::bad_file, file.origin(), ": ", key, " is ", id, ", expected an id below ", size);
  return static_cast<token_id>(id);
}

bool read_flag(gguf_file const& file, std::string_view key, bool otherwise, token_id id) {
  bool const added = file.boolean(key, otherwise);
  require(!added || id != no_token, errc::bad_file, file.origin(), ": ", key, " is true",
          file.contains(key) ? "" : " for this kind of tokenizer", ", but no token is named for it");
  return added;
}

special_tokens find_special(vocabulary const& tokens, auto const& is_wanted) {
  std::vector<token_id> ids;
  for (token_id id = 0; id < tokens.size(); ++id)
    if (is_wanted(tokens.kind(id))) ids.push_back(id);
  return {tokens, ids};
}

bool is_special(token_kind kind) {
  return kind == token_kind::control || kind == token_kind::user_defined || kind == token_kind::unknown;
}

}  // namespace

struct tokenizer::state {
  vocabulary tokens;
  std::string model_name;
  std::unique_ptr<text_model> model;
  special_tokens user_defined;  // recognised in every text
  special_tokens special;       // these, and control and unknown tokens
  token_id bos, eos;
  bool add_bos, add_eos;
  std::string hash;

  explicit state(gguf_file const& file)
      : tokens(file),
        model_name(file.string("tokenizer.ggml.model")),
        model(make_model(file, tokens)),
        user_defined(find_special(tokens, [](token_kind kind) { return kind == token_kind::user_defined; })),
        special(find_special(tokens, is_special)),
        bos(read_id(file, "tokenizer.ggml.bos_token_id", model->default_bos(), tokens.size())),
        eos(read_id(file, "tokenizer.ggml.eos_token_id", model->default_eos(), tokens.size())),
        add_bos(read_flag(file, "tokenizer.ggml.add_bos_token", model->adds_bos(), bos)),
        add_eos(read_flag(file, "tokenizer.ggml.add_eos_token", false, eos)),
        hash(compute_hash()) {}

  std::string compute_hash() const {
    content_hash h;
    h.add(model_name);
    h.add(model->pre_tokenizer_name());
    h.add(static_cast<std::uint64_t>(tokens.size()));
    for (token_id id = 0; id < tokens.size(); ++id) {
      h.add(tokens.text(id));
      h.add(static_cast<std::uint64_t>(tokens.kind(id)));
    }
    for (token_id const id : {bos, eos}) h.add(static_cast<std::uint64_t>(std::int64_t{id}));
    for (bool const flag : {add_bos, add_eos}) h.add(std::uint64_t{flag});
    model->add_to(h);
    return h.hex();
  }

  void check(token_id id) const {
    require(id >= 0 && id < tokens.size(), errc::bad_value, "token id ", id, " is outside the vocabulary of ",
            tokens.size(), " tokens");
  }
};

tokenizer::tokenizer(gguf_file const& file) : state_(std::make_unique<state>(file)) {}
tokenizer::tokenizer(tokenizer&&) noexcept = default;
tokenizer& tokenizer::operator=(tokenizer&&) noexcept = default;
tokenizer::~tokenizer() = default;

std::vector<token_id> tokenizer::encode(std::string_view text, encode_options options) const {
  // Positions are 32 bits wide; a space may take three bytes.
  require(text.size() < std::numeric_limits<std::uint32_t>::max() / 4, errc::bad_value, "a text of ", text.size(),
          " bytes, expected less than 1 GiB");
  state const& s = *state_;
  special_tokens const& recognised = options.parse_special ? s.special : s.user_defined;
  std::vector<token_id> ids;
  if (options.add_special && s.add_bos) ids.push_back(s.bos);
  for (std::size_t at = 0; at < text.size();) {
    auto const found = recognised.find(text, at);
    auto const ordinary = text.substr(at, (found ? found->begin : text.size()) - at);
    if (!ordinary.empty()) s.model->encode(ordinary, ids);
    if (found) ids.push_back(found->id);
    at = found ? found->end : text.size();
  }
  if (options.add_special && s.add_eos) ids.push_back(s.eos);
  return ids;
}

std::string tokenizer::decode(std::span<token_id const> ids) const {
  state const& s = *state_;
  std::string out;
  bool starts_text = true;  // the model's own space stands at the start and after each special token
  for (token_id const id : ids) {
    s.check(id);
    std::string_view piece = s.model->piece(id);
    bool const special = is_special(s.tokens.kind(id));
    if (starts_text && !special && s.model->adds_space() && piece.starts_with(' ')) piece.remove_prefix(1);
    starts_text = special;
    out += piece;
  }
  return out;
}

std::string tokenizer::piece(token_id id) const {
  state_->check(id);
  return state_->model->piece(id);
}

std::string tokenizer::missing_bytes() const {
  std::string missing;
  for (int byte = 0; byte < 256; ++byte)
    if (!state_->model->has_byte(static_cast<unsigned char>(byte))) missing += static_cast<char>(byte);
  return missing;
}

int tokenizer::vocabulary_size() const { return state_->tokens.size(); }
token_id tokenizer::bos() const { return state_->bos; }
token_id tokenizer::eos() const { return state_->eos; }
bool tokenizer::add_bos() const { return state_->add_bos; }
bool tokenizer::add_eos() const { return state_->add_eos; }
bool tokenizer::is_control(token_id id) const {
  state_->check(id);
  return state_->tokens.kind(id) == token_kind::control;
}
std::string_view tokenizer::model() const { return state_->model_name; }
std::string_view tokenizer::pre_tokenizer() const { return state_->model->pre_tokenizer_name(); }
std::string const& tokenizer::hash() const { return state_->hash; }

}  // namespace kvquant::runtime
