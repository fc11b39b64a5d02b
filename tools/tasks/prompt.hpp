#pragma once
/// \file
/// What is asked of a model, as it is to read it.

#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/gguf.hpp"
#include "runtime/tokenizer.hpp"

namespace kvquant::tasks {

/// What a chat template puts around what a user says.
struct chat_frame {
  std::string before, after;
};

/// None if the file has no template. Throws `bad_file` if the template does not write what a user says as it is, and
/// what `render_chat` throws.
std::optional<chat_frame> read_chat_frame(runtime::gguf_file const& file, runtime::tokenizer const& words);

/// A text to read and how the answer begins, which the model is to go on with.
struct question {
  std::string text;
  std::string answer_start{};
  bool plain = false;  ///< without the chat template, if there is one
};

class prompt_maker {
 public:
  /// `words` must outlive it.
  prompt_maker(runtime::tokenizer const& words, std::optional<chat_frame> frame)
      : words_(words), frame_(std::move(frame)) {}

  std::vector<runtime::token_id> ids(question const& it) const;
  std::size_t tokens(question const& it) const { return ids(it).size(); }
  runtime::tokenizer const& words() const { return words_; }

 private:
  runtime::tokenizer const& words_;
  std::optional<chat_frame> frame_;
};

constexpr std::size_t no_most_filler = std::numeric_limits<std::size_t>::max();

/// The most units of filler, 0 to `most`, with which `ask` makes a prompt of at most `limit` tokens. Throws `bad_value`
/// naming `task` if none does.
std::size_t most_filler(prompt_maker const& maker, std::function<question(std::size_t units)> const& ask,
                        std::size_t limit, std::string_view task, std::size_t most = no_most_filler);

/// Tokens that two prompts have in common at their start.
std::size_t common_start(std::vector<runtime::token_id> const& a, std::vector<runtime::token_id> const& b);

}  // namespace kvquant::tasks
