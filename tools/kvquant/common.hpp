#pragma once
/// \file
/// What the subcommands share: options, progress, tables, files.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "kvquant/core/error.hpp"
#include "runtime/gguf.hpp"
#include "runtime/model.hpp"
#include "runtime/model_config.hpp"
#include "runtime/sampler.hpp"
#include "runtime/tokenizer.hpp"

namespace kvquant::tool {

namespace fs = std::filesystem;

struct common_options {
  std::string json;  ///< file to write what the table shows to
  int threads = 0;   ///< 0: one per hardware thread
  bool quiet = false;
};
void add_common(CLI::App& command, common_options& options);
/// The same without `--threads`.
void add_outputs(CLI::App& command, common_options& options);

/// An option of values that `parse` reads, several after commas; what it throws is bad usage.
template <class T, class Parse>
CLI::Option* add_list(CLI::App& command, std::string const& name, std::vector<T>& values,
                      std::string const& description, Parse parse) {
  auto const check = [parse](std::string const& word) -> std::string {
    try {
      parse(word);
      return {};
    } catch (error const& failure) {
      return failure.what();
    }
  };
  auto const keep = [&values, parse](std::vector<std::string> const& words) {
    values.clear();
    for (std::string const& word : words) values.push_back(static_cast<T>(parse(word)));
  };
  return command.add_option_function<std::vector<std::string>>(name, keep, description)
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Validator(check, ""));
}

/// An option that names one of `choices`.
template <class T>
CLI::Option* add_choice(CLI::App& command, std::string const& name, T& chosen, std::string const& description,
                        std::map<std::string, T> const& choices) {
  std::vector<std::string> names;
  for (auto const& [choice, value] : choices) names.push_back(choice);
  return command
      .add_option_function<std::string>(
          name, [&chosen, choices](std::string const& choice) { chosen = choices.at(choice); }, description)
      ->check(CLI::IsMember(names));
}

/// `--backend`, one of those that this build has.
void add_backend(CLI::App& command, std::string& chosen);

/// Of values, which `calibrate` keeps sparse.
inline constexpr double default_outliers = 0.01;

/// `--temperature`, `--top-k`, `--top-p`.
void add_sampling(CLI::App& command, runtime::sampling_options& sampling);

/// How a text becomes tokens.
struct text_options {
  std::string path;
  std::vector<std::string> remove;  ///< strings to delete before tokenizing
};
CLI::Option* add_text(CLI::App& command, text_options& options);

/// The text without what is to be removed. Throws `bad_file` if it cannot be read, `bad_value` if nothing is left.
std::string read_text(text_options const& options);

/// A fingerprint of a text, for provenance: 16 hexadecimal digits.
std::string text_hash(std::string const& text);

/// A model's file before its weights are read, which may take a minute: whatever can be refused at once comes first.
struct model_file {
  cpu::thread_pool pool;
  runtime::gguf_file file;
  runtime::model_config config;
  runtime::tokenizer tokenizer;

  model_file(std::string const& path, int threads)
      : pool(threads),
        file(runtime::gguf_file::open(path)),
        config(runtime::read_model_config(file)),
        tokenizer(file) {}

  /// Tokens that end a text or an answer; -1 where there is none.
  std::array<runtime::token_id, 2> answer_ends() const {
    return {tokenizer.eos(), static_cast<runtime::token_id>(file.integer_or("tokenizer.ggml.eot_token_id", -1))};
  }
  bool ends_answer(runtime::token_id id) const {
    auto const ends = answer_ends();
    return std::find(ends.begin(), ends.end(), id) != ends.end();
  }
};

/// "label [#####.....] 43 % 00:12 left" on a terminal's stderr; silent anywhere else.
class progress {
 public:
  progress(std::string label, std::size_t total, bool quiet);
  progress(progress const&) = delete;
  progress& operator=(progress const&) = delete;
  ~progress();
  void advance(std::size_t steps = 1);

 private:
  void draw();
  std::string label_;
  std::size_t total_, done_ = 0;
  bool shown_;
  std::chrono::steady_clock::time_point start_;
};

/// Columns padded to their widest cell; the first column to the left, the others to the right.
void print_table(std::vector<std::vector<std::string>> const& rows);

/// `text` with spaces for control characters: names and contents of files may hold any byte.
std::string one_line(std::string text);

/// Throws `bad_file` unless each output (empty: none) can be written and differs from every input and other output:
/// before long work whose result would be lost.
void check_outputs(std::vector<std::string> const& outputs, std::vector<std::string> const& inputs);

/// Writes `value` to `path` if one was given; the file appears whole or not at all.
void write_json(std::string const& path, nlohmann::json const& value);

/// Adds the subcommand to `app`.
void add_bench(CLI::App& app);
void add_calibrate(CLI::App& app);
void add_eval(CLI::App& app);
void add_generate(CLI::App& app);
void add_inspect(CLI::App& app);
void add_plan(CLI::App& app);
void add_report(CLI::App& app);
void add_task(CLI::App& app);
void add_tokenize(CLI::App& app);

}  // namespace kvquant::tool
