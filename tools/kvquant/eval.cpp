#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "engines/artifact_label.hpp"
#include "kvquant/core/error.hpp"
#include "runtime/cache_engine.hpp"
#include "runtime/scoring.hpp"
#include "runtime/simulation/artifact_simulator.hpp"
#include "runtime/simulation/baselines.hpp"
#include "runtime/simulation/deployed.hpp"
#include "tools/kvquant/common.hpp"
#include "tools/kvquant/evaluated_cache.hpp"
#include "tools/kvquant/npy.hpp"

namespace kvquant::tool {

namespace {

struct eval_options {
  common_options common;
  text_options text;
  std::string model, nll_out;
  std::vector<std::string> artifacts, baselines = {"f16"};
  std::string mode = "deployed", backend{default_backend()};
  int context = 1024, recent_pages = 0;
  bool unbounded = false;
  std::size_t tokens = 0;
};

/// One row of the table: a cache, and what each prediction came to with it.
struct eval_row {
  std::unique_ptr<evaluated_cache> cache;
  std::vector<double> nll, kl;  // [predictions] nats
  std::size_t top1_agrees = 0;

  void append(runtime::token_scores const& scores) {
    nll.insert(nll.end(), scores.nll.begin(), scores.nll.end());
    kl.insert(kl.end(), scores.kl.begin(), scores.kl.end());
    top1_agrees += static_cast<std::size_t>(std::count(scores.top1_agrees.begin(), scores.top1_agrees.end(), 1));
  }
};

struct summary {
  double perplexity, delta_percent, delta_nll, delta_nll_se, kl_mean, kl_p999, top1_agreement, bits_per_element,
      bits_at_32k;
};

double mean(std::vector<double> const& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

/// The order statistic of rank ceil(q n).
double quantile(std::vector<double> x, double q) {
  auto const rank = static_cast<std::ptrdiff_t>(std::ceil(q * static_cast<double>(x.size()))) - 1;
  auto const at = x.begin() + std::max<std::ptrdiff_t>(rank, 0);
  std::nth_element(x.begin(), at, x.end());
  return *at;
}

/// `base` is the row that everything is compared with, prediction by prediction.
summary summarise(eval_row const& row, eval_row const& base, std::size_t window_tokens) {
  std::vector<double> delta(row.nll.size());
  std::transform(row.nll.begin(), row.nll.end(), base.nll.begin(), delta.begin(), std::minus<>{});
  double const shift = mean(delta);
  double squares = 0;
  for (double const d : delta) squares += (d - shift) * (d - shift);
  auto const n = static_cast<double>(delta.size());
  return {.perplexity = std::exp(mean(row.nll)),
          .delta_percent = 100 * std::expm1(shift),
          .delta_nll = shift,
          .delta_nll_se = n > 1 ? std::sqrt(squares / (n - 1) / n) : 0,
          .kl_mean = mean(row.kl),
          .kl_p999 = quantile(row.kl, 0.999),
          .top1_agreement = static_cast<double>(row.top1_agrees) / n,
          .bits_per_element = row.cache->bits_at(window_tokens),
          .bits_at_32k = row.cache->bits_at(std::size_t{1} << 15)};
}

/// Consecutive windows from the start of the text: what the model reads, and what each of its rows should predict.
struct eval_window {
  std::vector<runtime::token_id> ids, targets;
};
std::vector<eval_window> cut_windows(eval_options const& options, runtime::tokenizer const& tokenizer,
                                     std::string const& content) {
  auto ids = tokenizer.encode(content, {.add_special = false, .parse_special = false});
  if (options.tokens > 0) ids.resize(std::min(ids.size(), options.tokens));
  auto const length = static_cast<std::size_t>(options.context);
  require(ids.size() >= length, errc::bad_value, options.text.path, ": ", ids.size(),
          " tokens, expected at least one window of ", length, " (--context)");
  std::vector<eval_window> windows;
  for (std::size_t at = 0; at + length <= ids.size(); at += length) {
    auto const begin = ids.begin() + static_cast<std::ptrdiff_t>(at), end = begin + options.context;
    eval_window one{{begin, end}, {tokenizer.add_bos() ? begin : begin + 1, end}};
    if (tokenizer.add_bos()) one.ids.insert(one.ids.begin(), tokenizer.bos());
    windows.push_back(std::move(one));
  }
  return windows;
}

std::unique_ptr<evaluated_cache> make_baseline(std::string const& name, eval_options const& options,
                                               model_file& opened) {
  auto baseline = runtime::simulate_baseline(name, opened.config, opened.pool);
  if (options.mode == "simulated" || name == "f16") return evaluate_simulated(std::move(baseline));
  return evaluate_simulated(deploy_baseline(std::move(baseline), options.recent_pages));
}

/// The artifact as it is asked for: simulated, or packed and beside it, if wanted, with every outlier kept.
void add_artifact(std::vector<eval_row>& rows, std::string const& path, eval_options const& options,
                  model_file& opened) {
  auto const simulate = [&](std::optional<std::size_t> sinks) {
    return runtime::simulate_artifact(path, opened.config, opened.file.hash(), opened.pool, sinks);
  };
  if (options.mode == "simulated") {
    rows.push_back({evaluate_simulated(simulate(std::nullopt)), {}, {}});
    return;
  }
  cache_options const sizes{.max_tokens = static_cast<std::size_t>(options.context) + 1,
                            .recent_pages = options.recent_pages};
  auto cache = runtime::make_cache(path, options.backend, opened.config, opened.file.hash(), sizes);
  auto const name = label_with(label_of(cache->info()), options.recent_pages);
  runtime::deployed_window const window{.sinks = static_cast<std::size_t>(cache->info().sinks),
                                        .recent_pages = static_cast<std::size_t>(options.recent_pages)};
  rows.push_back({evaluate_packed(std::move(cache), sizes, name), {}, {}});
  if (options.unbounded)
    rows.push_back({evaluate_simulated(runtime::simulate_deployed(simulate(0), window, name + ", unbounded")), {}, {}});
}

std::vector<eval_row> make_rows(eval_options const& options, model_file& opened) {
  std::vector<eval_row> rows;
  rows.push_back({make_baseline("f16", options, opened), {}, {}});
  for (std::string const& name : options.baselines)
    if (name != "f16") rows.push_back({make_baseline(name, options, opened), {}, {}});
  for (std::string const& path : options.artifacts) add_artifact(rows, path, options, opened);
  return rows;
}

void run(std::vector<eval_row>& rows, runtime::model const& model, std::vector<eval_window> const& windows,
         bool quiet) {
  progress bar("evaluating", windows.size() * rows.size(), quiet);
  for (eval_window const& window : windows) {
    std::vector<runtime::matrix> hidden;
    std::vector<view2d<float const>> views;
    for (eval_row& row : rows) {
      hidden.push_back(row.cache->forward(model, window.ids));
      bar.advance();
    }
    for (runtime::matrix const& it : hidden)
      views.emplace_back(it.data(), window.targets.size(), static_cast<std::size_t>(it.cols()));
    auto const scores = runtime::score_rows(model, views, window.targets);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i].append(scores[i]);
  }
}

void print_rows(std::vector<eval_row> const& rows, std::size_t window_tokens) {
  std::vector<std::vector<std::string>> table = {
      {"cache", "bits", "at 32K", "perplexity", "Δ %", "ΔNLL ± SE", "KL mean", "KL 99.9 %", "top-1 %"}};
  for (eval_row const& row : rows) {
    summary const it = summarise(row, rows.front(), window_tokens);
    table.push_back({row.cache->name(), fmt::format("{:.2f}", it.bits_per_element),
                     fmt::format("{:.2f}", it.bits_at_32k), fmt::format("{:.3f}", it.perplexity),
                     fmt::format("{:+.2f}", it.delta_percent),
                     fmt::format("{:+.4f} ± {:.4f}", it.delta_nll, it.delta_nll_se), fmt::format("{:.5f}", it.kl_mean),
                     fmt::format("{:.3f}", it.kl_p999), fmt::format("{:.2f}", 100 * it.top1_agreement)});
  }
  print_table(table);
}

nlohmann::json to_json(std::vector<eval_row> const& rows, std::size_t window_tokens) {
  nlohmann::json out = nlohmann::json::array();
  for (eval_row const& row : rows) {
    summary const it = summarise(row, rows.front(), window_tokens);
    out.push_back({{"name", row.cache->name()},
                   {"perplexity", it.perplexity},
                   {"delta_percent", it.delta_percent},
                   {"delta_nll", it.delta_nll},
                   {"delta_nll_se", it.delta_nll_se},
                   {"kl_mean", it.kl_mean},
                   {"kl_p999", it.kl_p999},
                   {"top1_agreement", it.top1_agreement},
                   {"bits_per_element", it.bits_per_element},
                   {"bits_per_element_32k", it.bits_at_32k}});
    if (clamp_counts const clamps = row.cache->clamps(); clamps.keys + clamps.values > 0) {
      out.back()["clamped_keys"] = clamps.key_rate();
      out.back()["clamped_values"] = clamps.value_rate();
    }
  }
  return out;
}

/// Says which caches met what their calibration had not seen.
void print_clamps(std::vector<eval_row> const& rows) {
  constexpr double worth_saying = 1e-3;
  for (eval_row const& row : rows)
    if (clamp_counts const it = row.cache->clamps(); std::max(it.key_rate(), it.value_rate()) > worth_saying)
      fmt::print(
          "{}: {:.2f} % of the keys and {:.2f} % of the values lie beyond what its calibration saw: calibrate on "
          "a text that is more like this one\n",
          row.cache->name(), 100 * it.key_rate(), 100 * it.value_rate());
}

void eval(eval_options const& options) {
  std::vector<std::string> inputs = options.artifacts;
  inputs.insert(inputs.end(), {options.model, options.text.path});
  check_outputs({options.common.json, options.nll_out}, inputs);
  std::string const content = read_text(options.text);
  model_file opened(options.model, options.common.threads);
  auto const windows = cut_windows(options, opened.tokenizer, content);
  std::vector<eval_row> rows = make_rows(options, opened);
  run(rows, runtime::model(opened.file, opened.pool), windows, options.common.quiet);
  std::size_t const predictions = rows.front().nll.size(), window_tokens = windows.front().ids.size();
  if (!options.nll_out.empty()) {
    std::vector<double> all;
    for (eval_row const& row : rows) all.insert(all.end(), row.nll.begin(), row.nll.end());
    write_npy(options.nll_out, rows.size(), predictions, all);
  }
  write_json(options.common.json, {{"model", opened.config.name},
                                   {"model_hash", opened.file.hash()},
                                   {"text", options.text.path},
                                   {"text_hash", text_hash(content)},
                                   {"mode", options.mode},
                                   {"context", options.context},
                                   {"predictions", predictions},
                                   {"rows", to_json(rows, window_tokens)}});
  if (options.common.quiet) return;
  fmt::print("{}: {} windows of {} tokens, {} predictions, {}\n", one_line(opened.config.name), windows.size(),
             options.context, predictions, options.mode);
  print_rows(rows, window_tokens);
  print_clamps(rows);
}

}  // namespace

void add_eval(CLI::App& app) {
  auto* const command =
      app.add_subcommand("eval", "perplexity of a model with quantized caches, all on the same tokens");
  auto const options = std::make_shared<eval_options>();
  command->add_option("MODEL", options->model, "GGUF file")->required();
  add_text(*command, options->text)->required();
  command->add_option("--artifact", options->artifacts, "calibrated cache (may be repeated)")
      ->type_name("FILE")
      ->allow_extra_args(false);
  auto const baselines = runtime::baseline_names();
  command->add_option("--baseline", options->baselines, "caches to compare with; f16 is always there")
      ->delimiter(',')
      ->check(CLI::IsMember(std::vector<std::string>(baselines.begin(), baselines.end())))
      ->allow_extra_args(false);
  command->add_option("--context", options->context, "tokens per window")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "tokens of the text to use; 0: all")->check(CLI::NonNegativeNumber);
  command
      ->add_option(
          "--mode", options->mode,
          "deployed: through packed pages, as decoding does, a query's own page exact; simulated: every token is "
          "quantized, the current one included")
      ->check(CLI::IsMember({"deployed", "simulated"}))
      ->capture_default_str();
  command->add_option("--recent-pages", options->recent_pages, "deployed: pages of 64 latest tokens that stay exact")
      ->check(CLI::Range(0, 1 << 14))
      ->capture_default_str();
  command->add_flag("--unbounded", options->unbounded,
                    "deployed: each artifact once more with every outlier beyond its thresholds, instead of a fixed "
                    "number a page");
  add_backend(*command, options->backend);
  command->add_option("--dump-nll", options->nll_out, "write every prediction's loss, float64 [rows, predictions]")
      ->type_name("FILE.npy");
  add_common(*command, options->common);
  command->callback([options] { eval(*options); });
}

}  // namespace kvquant::tool
