#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "measure/attention.hpp"
#include "measure/attention_target.hpp"
#include "measure/choices.hpp"
#include "measure/sealing.hpp"
#include "tools/kvquant/bench_million.hpp"
#include "tools/kvquant/common.hpp"

namespace kvquant::tool {

namespace {

using measure::attention_result, measure::format_choice, measure::job;

struct bench_options {
  common_options common;
  std::string backend{measure::backend::name}, isa;
  std::vector<model_shape> shapes = measure::default_shapes();
  std::vector<format_choice> formats = measure::default_formats();
  std::vector<std::size_t> contexts = {std::size_t{1} << 13}, batches = {1};
  std::vector<int> threads = {1};
  double seconds = 0.3;
  std::optional<std::size_t> working_set;
  bool sweep = false;
};

/// A whole number from 1 to 1024.
int parse_count(std::string_view word) {
  bool const digits = !word.empty() && word.size() <= 4 && word.find_first_not_of("0123456789") == word.npos;
  int const count = digits ? std::stoi(std::string(word)) : 0;
  require(count >= 1 && count <= 1024, errc::bad_value, "\"", word, "\", expected a number from 1 to 1024");
  return count;
}

std::vector<job> jobs_of(bench_options const& options) {
  std::vector<job> jobs;
  for (model_shape const& shape : options.shapes)
    for (std::size_t const context : options.contexts)
      for (std::size_t const batch : options.batches)
        for (int const threads : options.threads)
          jobs.push_back({.shape = shape, .context = context, .batch = batch, .threads = threads});
  return jobs;
}

/// By the number of threads.
std::map<int, measure::attention_target> targets_of(bench_options const& options) {
  std::map<int, measure::attention_target> targets;
  for (int const threads : options.threads) targets[threads] = measure::target_of(options.backend, threads);
  return targets;
}

/// Before attention looks at what the machine can do.
void use_isa(std::string const& name) { setenv("KVQUANT_ISA", name.c_str(), 1); }

bool on_cpu(bench_options const& options) { return options.backend == measure::backend::name; }

/// Instructions of the CPU, or the device.
std::vector<std::string> machines_of(bench_options const& options) {
  if (on_cpu(options) && !options.isa.empty()) return {options.isa};
  std::string const best = measure::machine_of(options.backend);  // throws where there is none
  return on_cpu(options) && options.sweep ? measure::available_isa_names() : std::vector{best};
}

/// A result, and the instructions or the device that it was measured with.
struct attend_case {
  attention_result result;
  std::string isa;

  bool is_baseline() const { return result.format.spec == measure::baseline_format().spec; }
  std::string full_name() const { return result.name + ", " + isa; }
};

/// All that `bench attend` finds.
struct attend_report {
  std::string backend;
  std::map<int, double> bandwidth;  ///< bytes per second, by threads
  std::vector<attend_case> cases;
  std::vector<std::string> skipped;

  std::vector<attend_case> beside_f16() const {
    std::vector<attend_case> found;
    std::copy_if(cases.begin(), cases.end(), std::back_inserter(found),
                 [](attend_case const& it) { return !it.is_baseline(); });
    return found;
  }
  /// Names of the cases that take longer than f16.
  std::vector<std::string> slower() const {
    std::vector<std::string> names;
    for (attend_case const& it : cases)
      if (it.result.ratio_to_f16 < 1) names.push_back(it.full_name());
    return names;
  }
};

attend_report measure_all(bench_options const& options) {
  std::vector<job> const jobs = jobs_of(options);
  std::vector<std::string> const machines = machines_of(options);
  measure::attention_options how{.seconds = options.seconds, .working_set = options.working_set};
  double const asked = options.seconds * static_cast<double>(options.formats.size() + 1);
  if (options.sweep) how.most_seconds = std::max(10.0, asked);  // there are hundreds of cases
  progress bar("measuring", machines.size() * jobs.size() + 1, options.common.quiet);
  auto const targets = targets_of(options);
  attend_report report{options.backend, {}, {}, {}};
  for (auto const& [threads, on] : targets) report.bandwidth[threads] = on.bandwidth;
  bar.advance();
  for (job const& it : jobs)
    for (std::string const& machine : machines) {
      if (on_cpu(options)) use_isa(machine);
      auto const found = measure::measure_attention(it, options.formats, how, targets.at(it.threads));
      if (!found.skipped.empty()) report.skipped.push_back(found.skipped);
      for (attention_result const& one : found.results) report.cases.push_back({one, machine});
      bar.advance();
    }
  return report;
}

nlohmann::json to_json(attend_report const& report) {
  nlohmann::json bandwidth, cases = nlohmann::json::array();
  for (auto const& [threads, bytes_per_second] : report.bandwidth)
    bandwidth[std::to_string(threads)] = bytes_per_second / 1e9;
  for (auto const& [it, isa] : report.cases)
    cases.push_back({{"name", it.name},
                     {"isa", isa},
                     {"format", to_string(it.format)},
                     {"ns_per_token_layer", it.ns_per_token_layer},
                     {"seconds_per_call", it.seconds_per_call},
                     {"gbps", it.gigabytes_per_second},
                     {"share_of_bandwidth", it.share_of_bandwidth},
                     {"ratio_to_f16", it.ratio_to_f16},
                     {"bytes", it.bytes},
                     {"error", it.error}});
  return {{"backend", report.backend},
          {"bandwidth_gbps", bandwidth},
          {"cases", cases},
          {"slower_than_f16", report.slower()},
          {"skipped", report.skipped}};
}

void print_cases(attend_report const& report) {
  std::vector<std::vector<std::string>> table = {
      {"case", "ns/token/layer", "MB", "GB/s", "bandwidth %", "x f16", "error"}};
  for (auto const& [it, isa] : report.cases)
    table.push_back({it.name, fmt::format("{:.1f}", it.ns_per_token_layer),
                     fmt::format("{:.2f}", static_cast<double>(it.bytes) / 1e6),
                     fmt::format("{:.2f}", it.gigabytes_per_second), fmt::format("{:.1f}", 100 * it.share_of_bandwidth),
                     fmt::format("{:.2f}", it.ratio_to_f16), fmt::format("{:.1e}", it.error)});
  print_table(table);
}

void print_ratios(attend_report const& report) {
  std::vector<std::vector<std::string>> table = {{"case", "x f16"}};
  for (attend_case const& it : report.beside_f16())
    table.push_back({it.full_name(), fmt::format("{:.2f}", it.result.ratio_to_f16)});
  print_table(table);
}

/// What a sweep is for.
void print_verdict(attend_report const& report) {
  auto const cases = report.beside_f16();
  auto const slower = report.slower();
  for (std::string const& it : slower) fmt::print("slower than f16: {}\n", it);
  if (!slower.empty() || cases.empty())
    return fmt::print("{} of {} cases are slower than f16\n", slower.size(), cases.size());
  auto const& least = *std::min_element(cases.begin(), cases.end(), [](attend_case const& a, attend_case const& b) {
    return a.result.ratio_to_f16 < b.result.ratio_to_f16;
  });
  fmt::print("faster than f16 in all {} cases, least ratio {:.2f} at {}\n", cases.size(), least.result.ratio_to_f16,
             least.full_name());
}

std::string reader_of(int threads) {
  if (threads == 0) return "copies on the device move";
  return fmt::format("{} {} read", threads, threads == 1 ? "thread" : "threads");
}

void print_report(attend_report const& report, bool sweep) {
  for (auto const& [threads, bytes_per_second] : report.bandwidth)
    fmt::print("{} {:.1f} GB/s\n", reader_of(threads), bytes_per_second / 1e9);
  sweep ? print_ratios(report) : print_cases(report);
  for (std::string const& it : report.skipped) fmt::print("skipped: {}\n", it);
  if (sweep) print_verdict(report);
}

void bench_attend(bench_options const& options) {
  check_outputs({options.common.json}, {});
  attend_report const report = measure_all(options);
  write_json(options.common.json, to_json(report));
  if (!options.common.quiet) print_report(report, options.sweep);
}

void bench_seal(bench_options const& options) {
  check_outputs({options.common.json}, {});
  if (!options.isa.empty()) use_isa(options.isa);
  nlohmann::json cases = nlohmann::json::array();
  std::vector<std::vector<std::string>> table = {{"format", "GB/s", "x f16", "of a copy", "error"}};
  for (model_shape const& shape : options.shapes)
    for (auto const& it : measure::measure_sealing(shape, options.formats, options.seconds)) {
      std::string const name = measure::to_string(shape) + ", " + it.name;
      cases.push_back({{"name", name},
                       {"gbps", it.gigabytes_per_second},
                       {"ratio_to_f16", it.ratio_to_f16},
                       {"ratio_to_copy", it.ratio_to_copy},
                       {"error", it.error}});
      table.push_back({name, fmt::format("{:.3f}", it.gigabytes_per_second), fmt::format("{:.2f}", it.ratio_to_f16),
                       fmt::format("{:.4f}", it.ratio_to_copy), fmt::format("{:.1e}", it.error)});
    }
  write_json(options.common.json, {{"backend", measure::backend::name}, {"cases", cases}});
  if (!options.common.quiet) print_table(table);
}

/// What both measurements are asked.
void add_shared(CLI::App& command, bench_options& options) {
  add_list(command, "--shape", options.shapes, "query heads/KV heads/channels of a head (may be repeated)",
           measure::parse_shape)
      ->type_name("Q/KV/D");
  add_list(command, "--formats", options.formats,
           "formats beside f16, with a share of outliers or without: nuq4,nuq3-1%", measure::parse_format_choice);
  command.add_option("--isa", options.isa, "instructions of the CPU to use instead of its best")
      ->envname("KVQUANT_ISA")
      ->check(CLI::IsMember(std::vector<std::string>(measure::isa_names.begin(), measure::isa_names.end())));
  command.add_option("--seconds", options.seconds, "time to spend on every format of a case, at least")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  add_outputs(command, options.common);
}

void add_attend(CLI::App& bench) {
  auto* const command = bench.add_subcommand("attend", "decode attention over packed pages, beside that over f16");
  auto const options = std::make_shared<bench_options>();
  add_shared(*command, *options);
  auto* const formats = command->get_option("--formats");
  auto* const contexts = add_list(*command, "--context", options->contexts, "tokens in pages, as in 256 or 8K,32K",
                                  measure::parse_context);
  add_list(*command, "--batch", options->batches, "sequences that one call serves", parse_count);
  auto* const threads = add_list(*command, "--threads", options->threads, "worker threads of the CPU", parse_count);
  command->add_option("--backend", options->backend, "where attention runs")
      ->check(CLI::IsMember(measure::attention_backends()))
      ->capture_default_str();
  command
      ->add_option("--working-set", options->working_set,
                   "bytes that the layers of a case hold at least; 0: one layer, whose bytes stay in the machine's "
                   "caches if they fit (default: twice the last-level cache of a CPU, eight times a device's)")
      ->check(CLI::Range(std::size_t{0}, std::size_t{1} << 40));
  command
      ->add_flag("--sweep", options->sweep,
                 "is anything slower than f16? Contexts from 256 to 32K, with all instructions that the machine has")
      ->excludes(contexts);
  command->callback([options, formats, threads] {
    if (!on_cpu(*options)) {
      if (!threads->empty()) throw CLI::ValidationError("--threads: of the CPU, not of --backend " + options->backend);
      options->threads = {0};
    }
    if (options->sweep) options->contexts = measure::sweep_contexts();
    if (options->sweep && formats->empty()) options->formats = measure::sweep_formats();
    bench_attend(*options);
  });
}

void add_seal(CLI::App& bench) {
  auto* const command =
      bench.add_subcommand("seal", "appending whole pages on one thread: bytes of keys and values in binary16");
  auto const options = std::make_shared<bench_options>();
  options->shapes = {measure::parse_shape("32/8/128")};
  add_shared(*command, *options);
  command->callback([options] { bench_seal(*options); });
}

}  // namespace

void add_bench(CLI::App& app) {
  auto* const command = app.add_subcommand("bench", "how fast this machine reads and seals packed pages");
  command->require_subcommand(1);
  add_attend(*command);
  add_seal(*command);
  add_million(*command);
}

}  // namespace kvquant::tool
