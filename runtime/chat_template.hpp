#pragma once
/// \file
/// The chat template that a GGUF brings along: Jinja, rendered by Python's jinja2 in its sandbox.

#include <string>
#include <string_view>
#include <vector>

#include "runtime/gguf.hpp"
#include "runtime/tokenizer.hpp"

namespace kvquant::runtime {

struct chat_message {
  std::string role;  ///< "system", "user", "assistant"
  std::string content;
};

bool has_chat_template(gguf_file const& file);

/// The text that the model is to go on with as the assistant. Runs `python3`, which needs jinja2 (Debian:
/// python3-jinja2). Throws `bad_file` if the file has no template or it cannot be rendered, `unsupported` if Python or
/// jinja2 is missing.
std::string render_chat(gguf_file const& file, tokenizer const& words, std::vector<chat_message> const& messages);

}  // namespace kvquant::runtime
