#include "tools/kvquant/calibration_text.hpp"

#include <cstddef>
#include <random>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/self_text.hpp"

namespace kvquant::tool {

std::vector<window> choose_windows(window_choice const& choice, runtime::tokenizer const& tokenizer,
                                   std::string const& content, std::string const& path) {
  auto const ids = tokenizer.encode(content, {.add_special = false, .parse_special = false});
  std::size_t const bos = tokenizer.add_bos() ? 1 : 0;
  std::size_t const length = static_cast<std::size_t>(choice.tokens) - bos;
  require(ids.size() >= length, errc::bad_value, path, ": ", ids.size(), " tokens, expected at least one window of ",
          length, " (--context)");
  std::mt19937_64 random(choice.seed);
  std::vector<window> windows;
  for (int i = 0; i < choice.count; ++i) {
    auto const start = static_cast<std::ptrdiff_t>(random() % (ids.size() - length + 1));
    window one(bos, tokenizer.bos());
    one.insert(one.end(), ids.begin() + start, ids.begin() + start + static_cast<std::ptrdiff_t>(length));
    windows.push_back(std::move(one));
  }
  return windows;
}

void require_bos(model_file const& opened, std::string const& path) {
  require(opened.tokenizer.bos() >= 0, errc::unsupported, path,
          ": the model has no BOS token, with which text of its own begins, expected --text");
}

std::vector<window> write_windows(window_choice const& choice, runtime::model const& model, model_file const& opened,
                                  bool quiet) {
  auto const windows = static_cast<std::size_t>(choice.count), tokens = static_cast<std::size_t>(choice.tokens);
  progress bar("writing", windows * (tokens - 1), quiet);
  return runtime::write_self_text(model, opened.file.hash(), opened.tokenizer.bos(), {windows, tokens, choice.seed},
                                  [&] { bar.advance(); });
}

}  // namespace kvquant::tool
