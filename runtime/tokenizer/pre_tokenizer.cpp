#include "runtime/tokenizer/pre_tokenizer.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <new>
#include <string>

#include "kvquant/core/error.hpp"
#include "runtime/quote.hpp"
#include "runtime/tokenizer/utf8.hpp"

namespace kvquant::runtime {
namespace {

// The published patterns. White_Space is spelled out because PCRE2's \s also takes U+180E, which Unicode no longer
// counts as space. Each matches at least one character anywhere, so the words leave no gaps.
constexpr char gpt2_pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+)"
                                R"(|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
// Digits are isolated first and GPT-2's pattern cuts what lies between them: a digit ends the text for its neighbours.
constexpr char single_digits_pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\p{White_Space}\p{L}\p{N}]+)"
                                         R"(|\p{White_Space}+(?![^\p{White_Space}\p{N}])|\p{White_Space}+)";
constexpr char llama3_pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*)"
    R"(|\p{White_Space}*[\r\n]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";
constexpr char qwen2_pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\p{White_Space}\p{L}\p{N}]+[\r\n]*)"
    R"(|\p{White_Space}*[\r\n]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+)";

struct rule {
  std::string_view name;
  char const* pattern;
  bool whole_words_first = false;
  bool adds_bos = false;
};

constexpr std::array rules{
    rule{"gpt-2", gpt2_pattern},
    rule{"smollm", single_digits_pattern},
    rule{"starcoder", single_digits_pattern},
    rule{"refact", single_digits_pattern},
    rule{"llama-bpe", llama3_pattern, true, true},
    rule{"llama3", llama3_pattern, true, true},
    rule{"llama-v3", llama3_pattern, true, true},
    rule{"falcon3", llama3_pattern, true, true},
    rule{"smaug-bpe", llama3_pattern},
    rule{"qwen2", qwen2_pattern},
    rule{"deepseek-r1-qwen", qwen2_pattern},
    rule{"megrez", qwen2_pattern},
};

rule const& find_rule(std::string_view name) {
  auto const found = std::ranges::find(rules, name, &rule::name);
  if (found != rules.end()) return *found;
  std::string known;
  for (rule const& r : rules) known += (known.empty() ? "" : ", ") + std::string(r.name);
  throw error{errc::unsupported, text("pre-tokenizer ", quote(name), " is not known; known are ", known)};
}

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 160> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<char const*>(buffer.data());
}

struct free_pcre2 {
  void operator()(pcre2_code* p) const noexcept { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const noexcept { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const noexcept { pcre2_match_context_free(p); }
};
template <class T>
using pcre2_ptr = std::unique_ptr<T, free_pcre2>;

pcre2_ptr<pcre2_code> compile(char const* pattern) {
  int code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_ptr<pcre2_code> regex(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                                            PCRE2_UTF | PCRE2_UCP, &code, &offset, nullptr));
  if (!regex)
    throw error{errc::unsupported, text("PCRE2 ", PCRE2_MAJOR, ".", PCRE2_MINOR,
                                        " cannot compile a pre-tokenizer's pattern: ", pcre2_message(code),
                                        " at offset ", offset, "; expected version 10.40 or later")};
  // Where the machine has no JIT, pcre2_match interprets: slower, same words.
  pcre2_jit_compile(regex.get(), PCRE2_JIT_COMPLETE);
  return regex;
}

}  // namespace

struct pre_tokenizer::state {
  rule how;
  pcre2_ptr<pcre2_code> regex;
  pcre2_ptr<pcre2_match_context> limits;

  void split_valid(std::string_view text, pcre2_match_data* match, std::vector<std::string_view>& words) const;
};

pre_tokenizer::pre_tokenizer(std::string_view name) {
  rule const& how = find_rule(name);
  state_ = std::make_unique<state>(state{how, compile(how.pattern), {}});
  state_->limits.reset(pcre2_match_context_create(nullptr));
  if (!state_->limits) throw std::bad_alloc{};
  // The default gives up in a long run of spaces. The patterns cannot backtrack more than once over a run.
  pcre2_set_match_limit(state_->limits.get(), std::numeric_limits<std::uint32_t>::max());
}
pre_tokenizer::pre_tokenizer(pre_tokenizer&&) noexcept = default;
pre_tokenizer::~pre_tokenizer() = default;

std::string_view pre_tokenizer::name() const { return state_->how.name; }
bool pre_tokenizer::whole_words_first() const { return state_->how.whole_words_first; }
bool pre_tokenizer::adds_bos() const { return state_->how.adds_bos; }

void pre_tokenizer::state::split_valid(std::string_view text, pcre2_match_data* match,
                                       std::vector<std::string_view>& words) const {
  PCRE2_SIZE const* const bounds = pcre2_get_ovector_pointer(match);
  for (std::size_t at = 0; at < text.size(); at = bounds[1]) {
    int const found = pcre2_match(regex.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                                  PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, match, limits.get());
    if (found < 0)
      throw error{errc::unsupported, kvquant::text("pre-tokenizer ", how.name, " at byte ", at, " of a text of ",
                                                   text.size(), ": ", pcre2_message(found))};
    words.push_back(text.substr(at, bounds[1] - at));
  }
}

std::vector<std::string_view> pre_tokenizer::split(std::string_view text) const {
  pcre2_ptr<pcre2_match_data> const match(pcre2_match_data_create_from_pattern(state_->regex.get(), nullptr));
  if (!match) throw std::bad_alloc{};
  std::vector<std::string_view> words;
  // PCRE2 could step over invalid bytes itself, but without its JIT it looks for them again at every match.
  while (!text.empty()) {
    std::string_view const valid = valid_utf8_prefix(text);
    state_->split_valid(valid, match.get(), words);
    text.remove_prefix(valid.size());
    std::size_t invalid = 0;
    while (invalid < text.size() && utf8_length(text.substr(invalid)) == 0) ++invalid;
    if (invalid > 0) words.push_back(text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
  return words;
}

}  // namespace kvquant::runtime
