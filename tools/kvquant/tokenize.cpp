#include <fmt/format.h>

#include <memory>

#include "tools/kvquant/common.hpp"

namespace kvquant::tool {

namespace {

struct tokenize_options {
  common_options common;
  text_options text;
  std::string model;
};

void tokenize(tokenize_options const& options) {
  check_outputs({options.common.json}, {options.model, options.text.path});
  auto const file = runtime::gguf_file::open(options.model);
  runtime::tokenizer const tokenizer(file);
  std::string const content = read_text(options.text);
  auto const ids = tokenizer.encode(content, {.add_special = false, .parse_special = false});
  write_json(options.common.json, {{"ids", ids}});
  if (!options.common.quiet) fmt::print("{} tokens, {} bytes\n", ids.size(), content.size());
}

}  // namespace

void add_tokenize(CLI::App& app) {
  auto* const command = app.add_subcommand("tokenize", "count (and write) the tokens of a text");
  auto const options = std::make_shared<tokenize_options>();
  command->add_option("MODEL", options->model, "GGUF file")->required();
  add_text(*command, options->text)->required();
  add_common(*command, options->common);
  command->callback([options] { tokenize(*options); });
}

}  // namespace kvquant::tool
