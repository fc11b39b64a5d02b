/// \file
/// Writes a tiny random model as a GGUF file, for tests that run the command line tool.
/// Usage: write_tiny_model FILE [--architecture llama|qwen2] [--seed N] [--head-dim N] [--name TEXT] [--add-bos]
///                              [--no-bos] [--eos ID] [--chat-template TEXT] [--nan TENSOR] [--drop TENSOR]

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>

#include "test/support/tiny_model.hpp"

namespace {

using kvquant::test::gguf_writer;
using kvquant::test::tiny_model;

struct choices {
  tiny_model model;
  std::string path;
  std::optional<std::string> name, chat_template, nan, drop;
  std::optional<std::uint32_t> eos;
  bool has_bos = true;
};

choices parse(std::span<char*> arguments) {
  choices chosen;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    std::string const word = arguments[i];
    auto const value = [&] {
      if (++i == arguments.size()) throw std::invalid_argument(word + " needs a value");
      return std::string(arguments[i]);
    };
    if (word == "--architecture")
      chosen.model.architecture = value();
    else if (word == "--seed")
      chosen.model.seed = static_cast<unsigned>(std::stoul(value()));
    else if (word == "--head-dim")
      chosen.model.head_dim = chosen.model.rotary_dim = std::stoi(value());
    else if (word == "--name")
      chosen.name = value();
    else if (word == "--add-bos")
      chosen.model.add_bos = true;
    else if (word == "--no-bos")
      chosen.has_bos = false;
    else if (word == "--eos")
      chosen.eos = static_cast<std::uint32_t>(std::stoul(value()));
    else if (word == "--chat-template")
      chosen.chat_template = value();
    else if (word == "--nan")
      chosen.nan = value();
    else if (word == "--drop")
      chosen.drop = value();
    else if (chosen.path.empty() && !word.starts_with("--"))
      chosen.path = word;
    else
      throw std::invalid_argument("unexpected " + word);
  }
  if (chosen.path.empty()) throw std::invalid_argument("expected a FILE");
  return chosen;
}

gguf_writer::tensor_record& find(gguf_writer& file, std::string const& name) {
  for (auto& tensor : file.tensors)
    if (tensor.name == name) return tensor;
  throw std::invalid_argument("no tensor " + name);
}

void spoil_last_value(gguf_writer::tensor_record& tensor) {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(tensor.data.data() + tensor.data.size() - sizeof nan, &nan, sizeof nan);
}

void remove(gguf_writer& file, std::string const& key) {
  std::erase_if(file.entries, [&](gguf_writer::entry const& it) { return it.key == key; });
}

void rename(gguf_writer& file, std::string const& name) {
  remove(file, "general.name");
  file.set("general.name", name);
}

}  // namespace

int main(int argc, char** argv) try {
  choices const chosen = parse(std::span(argv, static_cast<std::size_t>(argc)).subspan(1));
  gguf_writer file = chosen.model.writer();
  if (chosen.name) rename(file, *chosen.name);
  if (!chosen.has_bos) remove(file, "tokenizer.ggml.bos_token_id");
  if (chosen.eos) file.set("tokenizer.ggml.eos_token_id", *chosen.eos);
  if (chosen.chat_template) file.set("tokenizer.chat_template", *chosen.chat_template);
  if (chosen.nan) spoil_last_value(find(file, *chosen.nan));
  if (chosen.drop) find(file, *chosen.drop).name = "another";
  file.write(chosen.path);
  return EXIT_SUCCESS;
} catch (std::exception const& failure) {
  std::cerr << "write_tiny_model: " << failure.what() << '\n';
  return EXIT_FAILURE;
}
