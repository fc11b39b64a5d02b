#include "tools/kvquant/task.hpp"
#include "tools/tasks/batches.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "engines/artifact_label.hpp"
#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"
#include "runtime/simulation/baselines.hpp"
#include "tools/kvquant/evaluated_cache.hpp"
#include "tools/tasks/passkey.hpp"
#include "tools/tasks/ruler.hpp"

namespace kvquant::tool {

namespace {

using tasks::sample_group;

constexpr std::array<char const*, 5> names = {"drift", "longbench", "needle-kl", "passkey", "ruler"};

/// What the model writes on in `drift` unless told otherwise.
constexpr std::array<char const*, 8> texts_to_write = {
    "Write a long story about a keeper of a lighthouse and a storm.",
    "Explain in detail how bread is baked, from the field to the table.",
    "Write the diary of somebody who crosses a desert on foot, day by day.",
    "Describe the history of a small town by the sea over three hundred years.",
    "Write a long dialogue between a gardener and a student about patience.",
    "Explain to a beginner how a computer works, beginning with switches.",
    "Tell the life of a river from its source to its mouth.",
    "Write a guide for visitors to a large museum, room by room."};

/// In rising order, each once.
template <class T>
void sort_and_unite(std::vector<T>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

tasks::sample_plan plan_of(task_options const& options, model_file const& opened) {
  tasks::sample_plan plan{.lengths = options.lengths,
                          .samples = options.samples.value_or(options.name == "longbench" ? 0 : 5),
                          .seed = options.seed,
                          .depths = options.depths};
  auto const context = static_cast<std::size_t>(opened.config.context);
  if (plan.lengths.empty())
    plan.lengths = {options.name == "longbench" ? context : std::min<std::size_t>(1024, context)};
  sort_and_unite(plan.lengths);
  sort_and_unite(plan.depths);
  require(plan.lengths.back() <= context, errc::bad_value, "a length of ", plan.lengths.back(),
          " tokens (--lengths), expected ", context, " at most, the model's context");
  if (!options.text.empty()) plan.filler = tasks::sentences_of(read_text({options.text, {}}));
  return plan;
}

std::vector<sample_group> ruler_groups(task_options const& options, tasks::prompt_maker const& maker,
                                       tasks::sample_plan const& plan) {
  std::vector<tasks::document> documents;
  if (!options.documents.empty())
    documents = tasks::parse_documents(read_text({options.documents, {}}), options.documents);
  std::vector<std::string> kinds = options.kinds;
  if (kinds.empty())
    for (std::string_view const it : tasks::ruler_tasks())
      if (it != "qa" || !documents.empty()) kinds.emplace_back(it);
  std::vector<sample_group> groups;
  for (std::string const& kind : kinds)
    for (sample_group& it : tasks::ruler_samples(maker, kind, plan, documents)) groups.push_back(std::move(it));
  return groups;
}

std::vector<sample_group> longbench_groups(task_options const& options, tasks::prompt_maker const& maker,
                                           tasks::sample_plan const& plan) {
  std::vector<tasks::longbench_record> records;
  for (std::string const& path : options.data)
    for (auto& it : tasks::parse_longbench(read_text({path, {}}), path)) records.push_back(std::move(it));
  require(!records.empty(), errc::bad_value, "longbench: no questions, expected a file of them (--data)");
  auto choices = options.longbench;
  if (!options.form_file.empty()) choices.form = read_text({options.form_file, {}});
  return tasks::longbench_samples(maker, records, plan, choices);
}

std::vector<sample_group> drift_groups(task_options const& options, tasks::prompt_maker const& maker,
                                       tasks::sample_plan const& plan) {
  require(plan.lengths.size() == 1, errc::bad_value, "drift: ", plan.lengths.size(),
          " lengths (--lengths), expected one: the positions on the way are told of");
  std::vector<std::string> prompts = options.prompts;
  if (prompts.empty()) prompts.assign(texts_to_write.begin(), texts_to_write.end());
  if (options.samples || options.prompts.empty()) {
    require(plan.samples <= prompts.size(), errc::bad_value, "drift: ", plan.samples, " samples of ", prompts.size(),
            " prompts, expected so many at most (--prompt adds one)");
    prompts.resize(plan.samples);
  }
  std::vector<sample_group> groups;
  for (std::string const& prompt : prompts)
    groups.push_back({{.task = "drift",
                       .length = plan.lengths.front(),
                       .index = groups.size(),
                       .prompt = maker.ids({.text = prompt}),
                       .most_tokens = plan.lengths.front()}});
  return groups;
}

std::vector<sample_group> make_groups(task_options const& options, tasks::sample_plan const& plan,
                                      model_file const& opened) {
  tasks::prompt_maker const maker(opened.tokenizer,
                                  options.raw ? std::nullopt : tasks::read_chat_frame(opened.file, opened.tokenizer));
  if (options.name == "ruler") return ruler_groups(options, maker, plan);
  if (options.name == "longbench") return longbench_groups(options, maker, plan);
  if (options.name == "drift") return drift_groups(options, maker, plan);
  return tasks::passkey_samples(maker, plan);
}

std::size_t tokens_of(tasks::sample const& it) { return std::max(it.prompt.size() + it.most_tokens, it.told.size()); }

/// Throws `bad_value` for a sample beyond the model's context.
void check_lengths(std::vector<sample_group> const& groups, model_file const& opened) {
  for (sample_group const& group : groups)
    for (tasks::sample const& it : group)
      require(tokens_of(it) <= static_cast<std::size_t>(opened.config.context), errc::bad_value, it.id(),
              ": a prompt of ", it.prompt.size(), " tokens and ", it.most_tokens, " to answer, expected ",
              opened.config.context, " together at most, the model's context");
}

bool is_answered(task_options const& options) { return options.name != "drift" && options.name != "needle-kl"; }

/// Tokens that a cache has to hold: those of a batch of answers, or of one sample, of which a fork has a tail of its
/// own.
std::size_t tokens_held(task_options const& options, std::vector<sample_group> const& groups) {
  std::size_t most = 0;
  for (sample_group const& group : groups) {
    for (tasks::sample const& it : group) most = std::max(most, tokens_of(it) + 2 * page_tokens);
    if (!is_answered(options)) continue;
    for (tasks::sample_batch const& batch : tasks::batches_of(group)) most = std::max(most, batch.tokens);
  }
  return most;
}

/// Names that are there already get the file's behind them.
std::string new_name(std::vector<named_cache> const& caches, std::string name, std::string const& path) {
  auto const taken = [&] {
    return std::any_of(caches.begin(), caches.end(), [&](named_cache const& it) { return it.name == name; });
  };
  if (taken()) name += " (" + fs::path(path).stem().string() + ")";
  require(!taken(), errc::bad_value, path, ": a second cache ", name, ", expected others");
  return name;
}

std::vector<named_cache> make_caches(task_options const& options, model_file& opened, std::size_t tokens) {
  cache_options const sizes{.max_tokens = tokens, .recent_pages = options.recent_pages};
  std::vector<named_cache> caches;
  auto exact = runtime::make_exact_cache(opened.config, opened.file.hash(), sizes.max_tokens, options.backend);
  caches.push_back({"f16", {}, tasks::test_packed(std::move(exact))});
  for (std::string const& name : options.baselines) {
    if (name == "f16") continue;
    auto cache = deploy_baseline(runtime::simulate_baseline(name, opened.config, opened.pool), options.recent_pages);
    std::string const label = cache->name();
    caches.push_back({new_name(caches, label, name), {}, tasks::test_simulated(std::move(cache))});
  }
  for (std::string const& path : options.artifacts) {
    auto cache = runtime::make_cache(path, options.backend, opened.config, opened.file.hash(), sizes);
    auto const label = label_with(label_of(cache->info()), options.recent_pages);
    caches.push_back(
        {new_name(caches, label, path), text_hash(read_text({path, {}})), tasks::test_packed(std::move(cache))});
  }
  return caches;
}

/// Of all that the model is given, and what its answers are held against.
std::string hash_of(std::vector<sample_group> const& groups) {
  fingerprint hash;
  for (sample_group const& group : groups)
    for (tasks::sample const& it : group) {
      hash.add(it.id() + "\n" + tasks::name_of(it.kind) + "\n");
      for (auto const* const ids : {&it.prompt, &it.told}) hash.add(std::as_bytes(std::span(*ids)));
      for (std::string const& answer : it.expected.answers) hash.add(answer + "\n");
    }
  return hash.hex();
}

nlohmann::json header_of(task_options const& options, tasks::sample_plan const& plan, model_file const& opened,
                         std::vector<sample_group> const& groups, std::vector<named_cache> const& caches) {
  nlohmann::json header = {
      {"kvquant_results", 1},          {"version", KVQUANT_VERSION},       {"task", options.name},
      {"model", opened.config.name},   {"model_hash", opened.file.hash()}, {"backend", options.backend},
      {"lengths", plan.lengths},       {"samples", plan.samples},          {"seed", options.seed},
      {"tokens_hash", hash_of(groups)}};
  for (named_cache const& it : caches) header["caches"].push_back({{"name", it.name}, {"hash", it.hash}});
  if (options.name == "drift")
    header["sampling"] = {{"temperature", options.sampling.temperature},
                          {"top_k", options.sampling.top_k},
                          {"top_p", options.sampling.top_p}};
  return header;
}

void run_task(task_options const& options) {
  std::vector<std::string> inputs = options.artifacts;
  inputs.push_back(options.model);
  inputs.insert(inputs.end(), options.data.begin(), options.data.end());
  for (std::string const& it : {options.text, options.documents, options.form_file})
    if (!it.empty()) inputs.push_back(it);
  check_outputs({options.common.json, options.output}, inputs);
  model_file opened(options.model, options.common.threads);
  auto const plan = plan_of(options, opened);
  auto const groups = make_groups(options, plan, opened);
  check_lengths(groups, opened);
  auto const caches = make_caches(options, opened, tokens_held(options, groups));
  auto const header = header_of(options, plan, opened, groups, caches);
  tasks::results_file results(options.output, header);
  runtime::model const model(opened.file, opened.pool);
  task_run const run{options, opened, model, caches, header, results};
  if (is_answered(options))
    run_answers(run, groups);
  else if (options.name == "drift")
    run_drift(run, groups);
  else
    run_needle_kl(run, groups);
  write_json(options.common.json, summarise_task(run));
  if (!options.common.quiet) print_task(run);
}

/// A whole number of few digits; none for anything else.
std::optional<std::size_t> parse_number(std::string_view word) {
  if (word.empty() || word.size() > 9 || word.find_first_not_of("0123456789") != word.npos) return std::nullopt;
  return std::stoul(std::string(word));
}

std::size_t parse_length(std::string_view word) {
  bool const thousands = word.ends_with('k') || word.ends_with('K');
  auto const number = parse_number(word.substr(0, word.size() - (thousands ? 1 : 0)));
  require(number.value_or(0) > 0, errc::bad_value, "\"", word, "\", expected tokens, as in 512 or 2k");
  return *number * (thousands ? 1024 : 1);
}

/// A share of a hundred.
int parse_depth(std::string_view word) {
  auto const depth = parse_number(word);
  require(depth && *depth <= 100, errc::bad_value, "\"", word, "\", expected a number from 0 to 100");
  return static_cast<int>(*depth);
}

/// Throws bad usage for options that the task does not read.
void check_usage(CLI::App const& command, task_options const& options) {
  static std::map<std::string, std::vector<std::string>> const readers = {{"--depths", {"passkey", "needle-kl"}},
                                                                          {"--text", {"passkey", "needle-kl", "ruler"}},
                                                                          {"--tasks", {"ruler"}},
                                                                          {"--documents", {"ruler"}},
                                                                          {"--data", {"longbench"}},
                                                                          {"--metric", {"longbench"}},
                                                                          {"--template", {"longbench"}},
                                                                          {"--max-tokens", {"longbench"}},
                                                                          {"--prompt", {"drift"}},
                                                                          {"--temperature", {"drift"}},
                                                                          {"--top-k", {"drift"}},
                                                                          {"--top-p", {"drift"}}};
  for (auto const& [option, tasks] : readers)
    if (command.count(option) > 0 && std::find(tasks.begin(), tasks.end(), options.name) == tasks.end())
      throw CLI::ValidationError(option, "is not for " + options.name + " but for " + tasks::join(tasks, ", "));
}

void add_what(CLI::App& command, task_options& options) {
  command.add_option("MODEL", options.model, "GGUF file")->required();
  command
      .add_option("NAME", options.name,
                  "passkey: a number hidden in filler; needle-kl: KL from f16 at such a number; ruler: tasks after "
                  "RULER; longbench: questions in its format; drift: along a long text")
      ->required()
      ->check(CLI::IsMember(std::vector<std::string>(names.begin(), names.end())));
  command.add_option("--artifact", options.artifacts, "calibrated cache (may be repeated)")
      ->type_name("FILE")
      ->allow_extra_args(false);
  auto const baselines = runtime::baseline_names();
  command.add_option("--baseline", options.baselines, "simulated caches to compare with; f16 is always there")
      ->delimiter(',')
      ->check(CLI::IsMember(std::vector<std::string>(baselines.begin(), baselines.end())))
      ->allow_extra_args(false);
  add_list(
      command, "--lengths", options.lengths,
      "tokens of prompt and answer, as in 512,1k; 1k if not given (drift: tokens to write; longbench: prompts that are "
      "longer lose their middle, the model's context if not given)",
      parse_length);
  command
      .add_option("--samples", options.samples,
                  "of each kind, length and depth, 5 if not given; longbench: of each dataset, all if not given")
      ->check(CLI::Range(1, 1 << 20));
  command.add_option("--seed", options.seed, "of samples, and of drift's choice of tokens")->capture_default_str();
  command
      .add_option("-o,--output", options.output,
                  "a line for every sample and cache; a run that was stopped goes on with it")
      ->type_name("FILE.jsonl");
  command.add_flag("--raw", options.raw, "give prompts to the model as they are, without its chat template");
  command.add_option("--recent-pages", options.recent_pages, "pages of 64 latest tokens that stay exact")
      ->check(CLI::Range(0, 1 << 14))
      ->capture_default_str();
}

void add_details(CLI::App& command, task_options& options) {
  add_list(command, "--depths", options.depths,
           "passkey, needle-kl: where the number is hidden, percent; 0,25,50,75,100 if not given", parse_depth);
  command.add_option("--text", options.text, "passkey, needle-kl, ruler: a text to hide needles in")->type_name("FILE");
  auto const kinds = tasks::ruler_tasks();
  command.add_option("--tasks", options.kinds, "ruler: which; all if not given")
      ->delimiter(',')
      ->check(CLI::IsMember(std::vector<std::string>(kinds.begin(), kinds.end())))
      ->allow_extra_args(false);
  command.add_option("--documents", options.documents, "ruler: documents and questions for qa, JSON lines")
      ->type_name("FILE");
  command.add_option("--data", options.data, "longbench: questions, JSON lines (may be repeated)")
      ->type_name("FILE")
      ->allow_extra_args(false);
  std::map<std::string, std::optional<tasks::metric>> const metrics(tasks::metric_names().begin(),
                                                                    tasks::metric_names().end());
  add_choice(command, "--metric", options.longbench.kind, "longbench: in place of the dataset's", metrics);
  command
      .add_option("--template", options.form_file,
                  "longbench: the prompt, with {context} and {input}, in place of the dataset's")
      ->type_name("FILE");
  command
      .add_option("--max-tokens", options.longbench.most_tokens, "longbench: of an answer, in place of the dataset's")
      ->check(CLI::Range(1, 1 << 20));
  command.add_option("--prompt", options.prompts, "drift: what to write (may be repeated)")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  add_sampling(command, options.sampling);
}

}  // namespace

void add_task(CLI::App& app) {
  auto* const command = app.add_subcommand(
      "task", "what quantized caches make of a model's answers: retrieval, RULER, LongBench, long texts");
  auto const options = std::make_shared<task_options>();
  add_what(*command, *options);
  add_details(*command, *options);
  add_backend(*command, options->backend);
  add_common(*command, options->common);
  command->callback([command, options] {
    check_usage(*command, *options);
    run_task(*options);
  });
}

}  // namespace kvquant::tool
