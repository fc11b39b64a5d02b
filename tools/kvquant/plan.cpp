#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"
#include "measure/roof.hpp"
#include "tools/kvquant/common.hpp"
#include "tools/kvquant/plan_output.hpp"
#include "tools/kvquant/plan_solve.hpp"
#include "tools/plan/device.hpp"
#include "tools/plan/memory_plan.hpp"
#include "tools/plan/paper.hpp"
#include "tools/plan/quantity.hpp"

namespace kvquant::tool {

namespace {

struct plan_options {
  common_options common;
  std::string csv, path, model, device, context = "128K";
  std::vector<std::string> formats;
  std::vector<int> bits;
  std::optional<double> outliers, weight_bits;
  std::size_t batch = 1, chunk = 512;
  int devices = 1, sinks = 1, recent_pages = 0;
  bool solve = false;
  solve_sources sources;
};

std::vector<plan::cache_format> formats_of(plan_options const& options) {
  std::vector<plan::cache_format> formats;
  for (std::string const& name : options.formats) formats.push_back(plan::parse_cache_format(name, options.outliers));
  for (int const bits : options.bits)
    formats.push_back(
        plan::parse_cache_format(fmt::format("nuq{}", bits), options.outliers.value_or(default_outliers)));
  if (formats.empty())
    for (char const* const name : {"f16", "nuq4-1%", "nuq3-1%", "nuq2-1%", "adaptive3", "adaptive2"})
      formats.push_back(plan::parse_cache_format(name));
  return formats;
}

plan::model_facts facts_of(runtime::model_config const& config) {
  return {.name = config.name,
          .shape = runtime::shape_of(config),
          .hidden = config.hidden,
          .feed_forward = config.feed_forward,
          .vocabulary = config.vocabulary,
          .tied_embeddings = config.tied_embeddings};
}

plan::weight_bytes weights_of(runtime::gguf_file const& file, bool tied_embeddings) {
  plan::weight_bytes bytes;
  for (runtime::gguf_tensor const& it : file.tensors()) bytes.all += it.data.size();
  if (!tied_embeddings) bytes.looked_up = file.tensor("token_embd.weight").data.size();
  return bytes;
}

plan::page_owner owner_on(std::optional<plan::device> const& on) {
  return on && on->is_gpu ? plan::page_owner::cuda : plan::page_owner::cpu;
}

plan::memory_request request_of(plan_options const& options, std::optional<plan::device> const& on) {
  plan::memory_request request{.tokens = plan::parse_tokens(options.context),
                               .sequences = options.batch,
                               .sinks = options.sinks,
                               .recent_pages = options.recent_pages,
                               .devices = options.devices,
                               .chunk = options.chunk};
  request.owner = owner_on(on);
  if (!options.path.empty()) {
    auto const file = runtime::gguf_file::open(options.path);
    request.model = facts_of(runtime::read_model_config(file));
    request.weights = weights_of(file, request.model.tied_embeddings);
  } else if (!options.model.empty()) {
    request.model = plan::find_model(options.model);
    request.weights = plan::weights_of(request.model, options.weight_bits.value_or(16));
  }
  return request;
}

/// A format's answers. Those about a device are empty where none is named.
struct planned {
  plan::cache_format format;
  plan::memory_plan memory;
  std::optional<double> by_the_paper;  ///< bytes of the cache on all devices; of formats that the paper has
  bool is_served = true;               ///< by the backend of the device
  std::optional<bool> fits{};
  std::optional<std::size_t> longest_context{};
  std::optional<double> tokens_per_second{};
};

std::optional<double> paper_bytes(plan::memory_request const& request) {
  side_format const& side = request.format.key;
  bool const is_in_it = request.format.is_one_spec() && request.model.shape.local.layers.empty() &&
                        (side.id.name == nuq<4>::name || request.format.is_exact());
  if (!is_in_it) return std::nullopt;
  auto const tokens = static_cast<double>(request.tokens) * static_cast<double>(request.sequences);
  return plan::bytes_by_the_paper(request.model.shape, tokens, side.id.bits, side.outlier_fraction);
}

planned plan_format(plan::memory_request const& request, std::optional<plan::device> const& on) {
  planned it{.format = request.format, .memory = plan_memory(request), .by_the_paper = paper_bytes(request)};
  if (!on) return it;
  it.is_served = !on->is_gpu || plan::is_served_by_cuda(plan::cache_of(request));
  it.fits = it.memory.total() <= on->memory_bytes;
  it.longest_context = plan::longest_context(request, on->memory_bytes);
  it.tokens_per_second =
      static_cast<double>(request.sequences) * on->bandwidth / static_cast<double>(it.memory.read_by_a_step);
  return it;
}

std::vector<std::string> answers_of(planned const& it, bool has_device) {
  std::vector<std::string> row = {plan::to_string(it.format), fmt::format("{:.2f}", it.memory.bits_per_element),
                                  size_name(it.memory.cache.total())};
  row.push_back(it.by_the_paper ? size_name(*it.by_the_paper) : "-");
  row.push_back(size_name(it.memory.total()));
  if (has_device)
    row.insert(row.end(), {*it.fits ? "yes" : "no", std::to_string(*it.longest_context),
                           fmt::format("{:.1f}", *it.tokens_per_second)});
  return row;
}

/// Of those that fit, by rising bits of an element.
std::vector<planned const*> those_that_fit(std::vector<planned> const& rows) {
  std::vector<planned const*> fitting;
  for (planned const& it : rows)
    if (it.fits.value_or(false)) fitting.push_back(&it);
  std::ranges::stable_sort(fitting, {}, [](planned const* it) { return it->memory.bits_per_element; });
  return fitting;
}

void show_question(plan::memory_request const& request, std::optional<plan::device> const& on) {
  model_shape const& shape = request.model.shape;
  std::string local, device;
  if (!shape.local.layers.empty())
    local = fmt::format(", {} of them with a window of {} tokens", shape.local.layers.size(), shape.local.window);
  if (on) device = fmt::format(" {} of {}, {:.0f} GB/s", on->name, size_name(on->memory_bytes), on->bandwidth / 1e9);
  fmt::print("{}: {} layers{}, {} KV heads x {}, weights {}\n", one_line(request.model.name), shape.layers, local,
             shape.kv_heads, shape.head_dim, size_name(request.weights.all));
  fmt::print("batch {} x {} tokens, {} device{}{}\n\n", request.sequences, request.tokens, request.devices,
             request.devices == 1 ? "" : "s", device);
}

void show_answers(std::vector<planned> const& rows, bool has_device, bool is_shared) {
  text_table table = {{"format", "bits/element", is_shared ? "cache/device" : "cache",
                       is_shared ? "by the paper, all" : "by the paper", is_shared ? "total/device" : "total"}};
  if (has_device) table.front().insert(table.front().end(), {"fits", "longest context", "tokens/s at most"});
  for (planned const& it : rows) table.push_back(answers_of(it, has_device));
  print_table(table);
}

void show_parts(std::vector<planned> const& rows, bool is_shared) {
  text_table table = {{is_shared ? "bytes/device" : "bytes"}};
  for (planned const& it : rows) table.front().push_back(plan::to_string(it.format));
  for (memory_part const& part : memory_parts) {
    table.push_back({part.name});
    for (planned const& it : rows) table.back().push_back(std::to_string(part.bytes(it.memory)));
  }
  print_table(table);
}

void show_choice(std::vector<planned> const& rows) {
  if (auto const fitting = those_that_fit(rows); fitting.empty())
    fmt::print("none of these formats fits\n");
  else
    fmt::print("of those that fit, most bits: {}; cheapest: {}\n", plan::to_string(fitting.back()->format),
               plan::to_string(fitting.front()->format));
  std::vector<std::string> others;
  for (planned const& it : rows)
    if (!it.is_served) others.push_back(plan::to_string(it.format));
  if (!others.empty())
    fmt::print("not served by the CUDA backend for this model, and counted as the CPU's pages: {}\n",
               fmt::join(others, ", "));
}

void show(plan::memory_request const& request, std::optional<plan::device> const& on,
          std::vector<planned> const& rows) {
  bool const is_shared = request.devices > 1;
  show_question(request, on);
  show_answers(rows, on.has_value(), is_shared);
  fmt::print("\n");
  show_parts(rows, is_shared);
  if (!on) return;
  fmt::print("\n");
  show_choice(rows);
}

nlohmann::json json_of(planned const& it) {
  nlohmann::json row = {{"format", plan::to_string(it.format)},
                        {"bits_per_element", it.memory.bits_per_element},
                        {"served", it.is_served},
                        {"total", it.memory.total()},
                        {"read_by_a_step", it.memory.read_by_a_step}};
  for (memory_part const& part : memory_parts) row[part.key] = part.bytes(it.memory);
  if (it.by_the_paper) row["bytes_by_the_paper"] = *it.by_the_paper;
  if (it.fits) row["fits"] = *it.fits;
  if (it.longest_context) row["longest_context"] = *it.longest_context;
  if (it.tokens_per_second) row["tokens_per_second"] = *it.tokens_per_second;
  return row;
}

void write_files(plan_options const& options, plan::memory_request const& request,
                 std::optional<plan::device> const& on, std::vector<planned> const& rows) {
  nlohmann::json all = {{"model", request.model.name}, {"weight_bytes", request.weights.all},
                        {"context", request.tokens},   {"batch", request.sequences},
                        {"devices", request.devices},  {"rows", nlohmann::json::array()}};
  if (auto const fitting = those_that_fit(rows); !fitting.empty()) {
    all["most_bits_that_fit"] = plan::to_string(fitting.back()->format);
    all["cheapest_that_fits"] = plan::to_string(fitting.front()->format);
  }
  if (on) all["device"] = {{"name", on->name}, {"memory", on->memory_bytes}, {"bandwidth", on->bandwidth}};
  for (planned const& it : rows) all["rows"].push_back(json_of(it));
  write_json(options.common.json, all);
  write_csv(options.csv, all["rows"]);
}

void plan_formats(plan_options const& options, std::optional<plan::device> const& on) {
  plan::memory_request request = request_of(options, on);
  std::vector<planned> rows;
  for (plan::cache_format const& format : formats_of(options)) {
    request.format = format;
    rows.push_back(plan_format(request, on));
  }
  write_files(options, request, on, rows);
  if (!options.common.quiet) show(request, on, rows);
}

/// What the command line alone tells.
void check_usage(plan_options const& options) try {
  if (options.solve) {
    require(options.path.empty() && options.model.empty(), errc::bad_value,
            "--solve: the model is that of the artifacts or statistics, expected none beside them");
    require(!options.sources.artifacts.empty() || !options.sources.statistics.empty(), errc::bad_value,
            "--solve: expected --artifact or --from-stats");
    require(!options.sources.budget.empty(), errc::bad_value, "--solve: expected --budget");
    plan::parse_bytes(options.sources.budget);
  } else {
    require(options.path.empty() != options.model.empty(), errc::bad_value, "plan: expected either a MODEL or --model");
    require(options.path.empty() || !options.weight_bits, errc::bad_value,
            "--weight-bits excludes a MODEL, whose weights are as they are");
    require(options.sources.artifacts.empty() && options.sources.statistics.empty() && options.sources.budget.empty(),
            errc::bad_value, "plan: --artifact, --from-stats and --budget are for --solve");
    formats_of(options);
  }
  plan::parse_tokens(options.context);
} catch (error const& failure) {
  throw CLI::ValidationError(failure.what());
}

void run_plan(plan_options const& options) {
  check_usage(options);
  std::vector<std::string> inputs = options.sources.artifacts;
  inputs.insert(inputs.end(), options.sources.statistics.begin(), options.sources.statistics.end());
  if (!options.path.empty()) inputs.push_back(options.path);
  check_outputs({options.common.json, options.csv}, inputs);
  std::optional<plan::device> on;
  if (!options.device.empty()) on = plan::find_device(options.device);
  if (options.solve) {
    plan::cache_request const request{.tokens = plan::parse_tokens(options.context),
                                      .sequences = options.batch,
                                      .sinks = options.sinks,
                                      .recent_pages = options.recent_pages,
                                      .owner = owner_on(on)};
    solve_plan(options.sources, options.devices, request, options.common, options.csv);
    return;
  }
  if (on && on->bandwidth == 0) {
    cpu::thread_pool pool(options.common.threads);
    on->bandwidth = measure::read_bandwidth(pool);
  }
  plan_formats(options, on);
}

}  // namespace

void add_plan(CLI::App& app) {
  auto* const command = app.add_subcommand("plan", "memory of a model and its cache, what fits, what to give up");
  auto const options = std::make_shared<plan_options>();
  command->add_option("MODEL", options->path, "GGUF file");
  command->add_option("--model", options->model, "a model by name, as in llama-7b")->type_name("NAME");
  command->add_option("--context", options->context, "tokens of each sequence; 128K is 131072, 1M 1048576")
      ->capture_default_str();
  command->add_option("--batch", options->batch, "sequences")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1} << 16))
      ->capture_default_str();
  command->add_option("--format", options->formats, "what keys and values are stored as: nuq3-1%,adaptive2.5,nuq4/nuq2")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--bits", options->bits, "what calibrate --bits makes: 3 is nuq3-1%")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--outliers", options->outliers, "fraction of values kept sparse, where a format names none")
      ->check(CLI::Range(0.0, 0.5));
  command->add_option("--device", options->device, "what it should fit, as in a100-80g; cpu: this machine's memory")
      ->type_name("NAME");
  command->add_option("--devices", options->devices, "how many, each with its share of KV heads and weights")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("--weight-bits", options->weight_bits, "of a parameter of a model by name: 16")
      ->check(CLI::Range(1.0, 32.0));
  command->add_option("--sinks", options->sinks, "first tokens kept exact")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  command->add_option("--recent-pages", options->recent_pages, "whole pages of the latest tokens kept exact")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--chunk", options->chunk, "tokens of a prompt that go through the model together")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1} << 24))
      ->capture_default_str();
  command->add_flag("--solve", options->solve, "choose the formats of least predicted loss within --budget");
  command->add_option("--artifact", options->sources.artifacts, "with --solve: losses of an artifact (may be repeated)")
      ->type_name("FILE")
      ->allow_extra_args(false);
  command
      ->add_option("--from-stats", options->sources.statistics,
                   "with --solve: losses that statistics of calibrate --stats tell (may be repeated)")
      ->type_name("STATS")
      ->allow_extra_args(false);
  command->add_option("--budget", options->sources.budget, "with --solve: memory of the cache on a device, as in 2GiB");
  command->add_option("--csv", options->csv, "write the rows to this file")->type_name("FILE");
  add_common(*command, options->common);
  command->callback([options] { run_plan(*options); });
}

}  // namespace kvquant::tool
