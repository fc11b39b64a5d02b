#include "tools/tasks/prompt.hpp"

#include <algorithm>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/chat_template.hpp"

namespace kvquant::tasks {

std::optional<chat_frame> read_chat_frame(runtime::gguf_file const& file, runtime::tokenizer const& words) {
  if (!runtime::has_chat_template(file)) return std::nullopt;
  constexpr std::string_view said = "What-the-user-says-0123456789";
  std::string const text = runtime::render_chat(file, words, {{"user", std::string(said)}});
  std::size_t const at = text.find(said);
  require(at != text.npos && text.find(said, at + 1) == text.npos, errc::bad_file, file.origin(),
          ": the chat template does not write once what the user says, expected it to (--raw goes without)");
  return chat_frame{text.substr(0, at), text.substr(at + said.size())};
}

std::vector<runtime::token_id> prompt_maker::ids(question const& it) const {
  if (!frame_ || it.plain) return words_.encode(it.answer_start.empty() ? it.text : it.text + "\n" + it.answer_start);
  // The template writes BOS where it wants it.
  return words_.encode(frame_->before + it.text + frame_->after + it.answer_start,
                       {.add_special = false, .parse_special = true});
}

std::size_t most_filler(prompt_maker const& maker, std::function<question(std::size_t units)> const& ask,
                        std::size_t limit, std::string_view task, std::size_t most) {
  std::size_t const least = maker.tokens(ask(0));
  require(least <= limit, errc::bad_value, task, ": a length that leaves ", limit, " tokens to the prompt, expected ",
          least, " at least");
  auto const fits = [&](std::size_t units) { return units <= most && maker.tokens(ask(units)) <= limit; };
  std::size_t enough = 0, too_many = 16;
  while (fits(too_many)) enough = std::exchange(too_many, 2 * too_many);
  while (too_many - enough > 1) {
    std::size_t const middle = enough + (too_many - enough) / 2;
    (fits(middle) ? enough : too_many) = middle;
  }
  return enough;
}

std::size_t common_start(std::vector<runtime::token_id> const& a, std::vector<runtime::token_id> const& b) {
  auto const [end, ignored] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return static_cast<std::size_t>(end - a.begin());
}

}  // namespace kvquant::tasks
