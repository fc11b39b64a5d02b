#pragma once
/// \file
/// What a model is calibrated on: windows of a text, or of what the model writes itself.

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/model.hpp"
#include "runtime/tokenizer.hpp"
#include "tools/kvquant/common.hpp"

namespace kvquant::tool {

using window = std::vector<runtime::token_id>;

struct window_choice {
  int count = 16, tokens = 2048;
  std::uint64_t seed = 0;
};

/// Windows with random starts; with a BOS first where the model asks for one. Throws `bad_value` naming `path` for a
/// text that is shorter than one.
std::vector<window> choose_windows(window_choice const& choice, runtime::tokenizer const& tokenizer,
                                   std::string const& content, std::string const& path);

/// Throws `unsupported` naming `path` where the model has no BOS, with which a text of its own begins.
void require_bos(model_file const& opened, std::string const& path);

/// Windows that the model writes itself.
std::vector<window> write_windows(window_choice const& choice, runtime::model const& model, model_file const& opened,
                                  bool quiet);

}  // namespace kvquant::tool
