#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engines/artifact_label.hpp"
#include "kvquant/core/error.hpp"
#include "runtime/cache_engine.hpp"
#include "runtime/chat_template.hpp"
#include "runtime/sampler.hpp"
#include "runtime/tokenizer/utf8.hpp"
#include "tools/kvquant/common.hpp"

namespace kvquant::tool {

namespace {

struct generate_options {
  common_options common;
  std::string model, artifact, prompt, prompt_file, system, backend{default_backend()};
  bool raw = false, profile = false;
  std::size_t max_tokens = 128;
  int recent_pages = 0;
  runtime::sampling_options sampling;
};

/// What the model reads first.
std::vector<runtime::token_id> prompt_ids(generate_options const& options, model_file const& opened) {
  std::string const prompt = options.prompt_file.empty() ? options.prompt : read_text({options.prompt_file, {}});
  if (options.raw || !runtime::has_chat_template(opened.file)) {
    require(options.system.empty(), errc::bad_value, options.model,
            ": no chat template is used, so there is no place for --system");
    return opened.tokenizer.encode(prompt);
  }
  std::vector<runtime::chat_message> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", prompt});
  // The template writes BOS where it wants it.
  return opened.tokenizer.encode(runtime::render_chat(opened.file, opened.tokenizer, messages),
                                 {.add_special = false, .parse_special = true});
}

/// What a terminal may be given: UTF-8, with U+FFFD for what is none, and no control characters, which it would obey.
std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    std::size_t const length = runtime::utf8_length(text);
    auto const first = static_cast<unsigned char>(text[0]);
    bool const c0 = length == 1 && ((first < ' ' && first != '\n' && first != '\t') || first == 0x7f);
    bool const c1 = length == 2 && first == 0xc2 && static_cast<unsigned char>(text[1]) < 0xa0;
    if (length == 0)
      out += "\uFFFD";
    else if (!c0 && !c1)
      out += text.substr(0, length);
    text.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return out;
}

/// Prints a text as its tokens come.
class stream {
 public:
  explicit stream(bool shown) : shown_(shown) {}

  void add(std::string const& piece) {
    waiting_ += piece;
    flush(waiting_.size() - incomplete_bytes(waiting_));
  }
  std::string const& finish() {
    flush(waiting_.size());
    return all_;
  }

 private:
  static std::size_t incomplete_bytes(std::string const& text) {
    for (std::size_t back = 1; back <= std::min<std::size_t>(3, text.size()); ++back) {
      auto const byte = static_cast<unsigned char>(text[text.size() - back]);
      if (byte < 0x80) return 0;
      if (byte >= 0xc0) return back < (byte >= 0xf0 ? 4u : byte >= 0xe0 ? 3u : 2u) ? back : 0;
    }
    return 0;
  }
  void flush(std::size_t bytes) {
    std::string const piece = printable(std::string_view(waiting_).substr(0, bytes));
    waiting_.erase(0, bytes);
    all_ += piece;
    if (!shown_) return;
    fmt::print("{}", piece);
    std::fflush(stdout);
  }

  bool shown_;
  std::string waiting_, all_;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double rate(std::size_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }

/// Reading the prompt, or answering.
struct stage {
  std::size_t tokens = 0;
  double seconds = 0;
  runtime::profile spent;

  double tokens_per_second() const { return rate(tokens, seconds); }
};

struct generation {
  std::string text;
  std::vector<runtime::token_id> ids;
  bool stopped = false;  ///< by a token that ends the answer
  stage prompt, answer;
};

class generator {
 public:
  generator(runtime::model const& model, model_file const& opened, engine_sequence& sequence)
      : model_(model), opened_(opened), sequence_(sequence), scores_(1, model.config().vocabulary) {}

  generation run(std::vector<runtime::token_id> const& prompt, generate_options const& options) {
    generation out;
    auto const started = std::chrono::steady_clock::now();
    read_prompt(prompt, options.common.quiet, options.profile ? &out.prompt.spent : nullptr);
    out.prompt.seconds = seconds_since(started);
    out.prompt.tokens = prompt.size();
    runtime::sampler sampler(options.sampling);
    stream text(true);
    auto const begun = std::chrono::steady_clock::now();
    while (out.ids.size() < options.max_tokens) {
      runtime::token_id const id = sampler.next(runtime::view_of(std::as_const(scores_)).row(0));
      out.stopped = opened_.ends_answer(id);
      if (out.stopped) break;
      out.ids.push_back(id);
      text.add(opened_.tokenizer.piece(id));
      if (out.ids.size() < options.max_tokens) feed({&id, 1}, options.profile ? &out.answer.spent : nullptr);
    }
    out.answer.seconds = seconds_since(begun);
    out.answer.tokens = out.ids.size();
    out.text = text.finish();
    return out;
  }

 private:
  void feed(std::span<runtime::token_id const> ids, runtime::profile* spent) {
    runtime::matrix const hidden = runtime::forward(model_, ids, sequence_, spent);
    model_.logits(runtime::view_of(hidden).middle_rows(ids.size() - 1, 1), runtime::view_of(scores_), spent);
  }
  void read_prompt(std::vector<runtime::token_id> const& prompt, bool quiet, runtime::profile* spent) {
    constexpr std::size_t chunk = 256;
    progress bar("reading the prompt", prompt.size(), quiet);
    for (std::size_t first = 0; first < prompt.size(); first += chunk) {
      auto const piece = std::span(prompt).subspan(first, std::min(chunk, prompt.size() - first));
      feed(piece, spent);
      bar.advance(piece.size());
    }
  }

  runtime::model const& model_;
  model_file const& opened_;
  engine_sequence& sequence_;
  runtime::matrix scores_;
};

std::unique_ptr<engine> make_cache(generate_options const& options, model_file const& opened, std::size_t tokens) {
  if (options.artifact.empty())
    return runtime::make_exact_cache(opened.config, opened.file.hash(), tokens, options.backend);
  return runtime::make_cache(options.artifact, options.backend, opened.config, opened.file.hash(),
                             {.max_tokens = tokens, .recent_pages = options.recent_pages, .max_sequences = 1});
}

/// Bytes of the same tokens in binary16.
std::size_t f16_bytes(model_shape const& shape, std::size_t tokens) {
  return std::size_t{2} * 2 * tokens * static_cast<std::size_t>(shape.layers) *
         static_cast<std::size_t>(shape.kv_channels());
}

/// What a stage's time went to, then all of it.
std::vector<std::pair<std::string, double>> parts_of(stage const& it) {
  return {{"attention", it.spent.cache.attend},      {"cache", it.spent.cache.append},
          {"products", it.spent.products},           {"logits", it.spent.logits},
          {"rest", it.seconds - it.spent.counted()}, {"total", it.seconds}};
}

double percent(double seconds, stage const& of) { return of.seconds > 0 ? 100 * seconds / of.seconds : 0; }

nlohmann::json profile_json(stage const& it) {
  nlohmann::json parts;
  for (auto const& [name, seconds] : parts_of(it))
    parts[name] = {
        {"seconds", seconds}, {"percent", percent(seconds, it)}, {"tokens_per_second", rate(it.tokens, seconds)}};
  return parts;
}

/// The tokens per second of a part are those that there would be if nothing else took time.
void print_profile(generation const& it) {
  std::vector<std::vector<std::string>> table = {{"time", "prompt, s", "%", "tokens/s", "answer, s", "%", "tokens/s"}};
  for (auto const& [name, seconds] : parts_of(it.prompt)) table.push_back({name});
  for (stage const* const of : {&it.prompt, &it.answer}) {
    auto row = table.begin();
    for (auto const& [name, seconds] : parts_of(*of)) {
      ++row;
      for (std::string const& cell : {fmt::format("{:.3f}", seconds), fmt::format("{:.1f}", percent(seconds, *of)),
                                      seconds > 0 ? fmt::format("{:.1f}", rate(of->tokens, seconds)) : "-"})
        row->push_back(cell);
    }
  }
  fmt::print("\n");
  print_table(table);
}

/// `model`: its name.
void report(generate_options const& options, std::string const& model, artifact_info const& info,
            engine_sequence const& sequence, generation const& result) {
  std::string const name = options.artifact.empty() ? "f16" : label_of(info);
  std::size_t const bytes = sequence.bytes().total(), exact = f16_bytes(info.shape, sequence.tokens());
  nlohmann::json found = {{"model", model},
                          {"cache", name},
                          {"text", result.text},
                          {"ids", result.ids},
                          {"stopped", result.stopped},
                          {"prompt_tokens", result.prompt.tokens},
                          {"prompt_tokens_per_second", result.prompt.tokens_per_second()},
                          {"tokens_per_second", result.answer.tokens_per_second()},
                          {"cache_tokens", sequence.tokens()},
                          {"cache_bytes", bytes},
                          {"f16_bytes", exact}};
  if (options.profile)
    found["profile"] = {{"prompt", profile_json(result.prompt)}, {"answer", profile_json(result.answer)}};
  write_json(options.common.json, found);
  fmt::print("\n");
  if (options.common.quiet) return;
  fmt::print(
      "\n{}: {} tokens read at {:.1f} tokens/s, {} generated at {:.1f} tokens/s; the cache takes {:.2f} MiB, "
      "{:.2f} MiB in f16\n",
      name, result.prompt.tokens, result.prompt.tokens_per_second(), result.ids.size(),
      result.answer.tokens_per_second(), static_cast<double>(bytes) / (1 << 20),
      static_cast<double>(exact) / (1 << 20));
  if (options.profile) print_profile(result);
}

void generate(generate_options const& options) {
  std::vector<std::string> inputs = {options.model};
  for (std::string const& it : {options.artifact, options.prompt_file})
    if (!it.empty()) inputs.push_back(it);
  check_outputs({options.common.json}, inputs);
  model_file opened(options.model, options.common.threads);
  auto const prompt = prompt_ids(options, opened);
  auto const context = static_cast<std::size_t>(opened.config.context);
  require(!prompt.empty(), errc::bad_value, "the prompt is empty");
  require(prompt.size() <= context && options.max_tokens <= context - prompt.size(), errc::bad_value, "a prompt of ",
          prompt.size(), " tokens and ", options.max_tokens, " to generate (--max-tokens), expected ", context,
          " together at most, the model's context");
  auto const cache = make_cache(options, opened, prompt.size() + options.max_tokens);
  runtime::model const model(opened.file, opened.pool);
  auto const sequence = cache->open(prompt.size() + options.max_tokens);
  generation const result = generator(model, opened, *sequence).run(prompt, options);
  report(options, opened.config.name, cache->info(), *sequence, result);
}

}  // namespace

void add_generate(CLI::App& app) {
  auto* const command = app.add_subcommand("generate", "text from a model whose cache is quantized");
  auto const options = std::make_shared<generate_options>();
  command->add_option("MODEL", options->model, "GGUF file")->required();
  command->add_option("--artifact", options->artifact, "calibrated cache; without it the cache is f16")
      ->type_name("FILE");
  auto* const prompt = command->add_option_group("prompt");
  prompt->add_option("--prompt", options->prompt, "what the user says")->type_name("TEXT");
  prompt->add_option("--prompt-file", options->prompt_file, "the same from a file")->type_name("FILE");
  prompt->require_option(1);
  command->add_option("--system", options->system, "what the system says first, by the model's chat template")
      ->type_name("TEXT");
  command->add_flag("--raw", options->raw, "give the prompt to the model as it is, without its chat template");
  command->add_option("--max-tokens", options->max_tokens, "tokens to generate at most")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  add_sampling(*command, options->sampling);
  command->add_option("--seed", options->sampling.seed, "of the choice")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--recent-pages", options->recent_pages, "pages of 64 latest tokens that stay exact")
      ->check(CLI::Range(0, 1 << 14))
      ->capture_default_str();
  command->add_flag("--profile", options->profile, "what the time went to: attention, the cache, matrix products");
  add_backend(*command, options->backend);
  add_common(*command, options->common);
  command->callback([options] { generate(*options); });
}

}  // namespace kvquant::tool
