#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "kvquant/attend/softmax_state.hpp"
#include "kvquant/reference/attention.hpp"
#include "measure/choices.hpp"
#include "measure/machine.hpp"
#include "measure/roof.hpp"
#include "runtime/cache_engine.hpp"
#include "tools/kvquant/bench_million.hpp"
#include "tools/kvquant/calibration_text.hpp"
#include "tools/kvquant/common.hpp"

namespace kvquant::tool {

namespace {

using measure::seconds_of;

struct million_options {
  common_options common;
  text_options text;
  std::string model, artifact, backend{default_backend()};
  std::vector<std::size_t> tokens = {std::size_t{1} << 20};
  window_choice windows{.count = 4};
  int steps = 5, checks = 4;
};

/// Rows of floats, one after the other.
struct rows_of_floats {
  std::vector<float> x;
  std::size_t cols = 0;

  void append(view2d<float const> rows) {
    cols = rows.cols;
    for (std::size_t i = 0; i < rows.rows; ++i) x.insert(x.end(), rows.row(i).begin(), rows.row(i).end());
  }
  view2d<float const> rows(std::size_t first, std::size_t count) const {
    return {x.data() + first * cols, count, cols};
  }
  view2d<float const> all() const { return {x.data(), x.size() / cols, cols}; }
};

/// What a model computes on windows of a text: keys before RoPE and values of all tokens, queries of the last. Keys
/// before RoPE know no position, so that they stand anywhere.
class recorder final : public runtime::kv_hook {
 public:
  explicit recorder(int layers) : k(static_cast<std::size_t>(layers)), v(k), q(k) {}
  void queries_pre_rope(int layer, view2d<float> x) override {
    at(q, layer) = {};
    at(q, layer).append(x.middle_rows(x.rows - 1, 1));
  }
  void keys_pre_rope(int layer, view2d<float> x) override { at(k, layer).append(x); }
  void values(int layer, view2d<float> x) override { at(v, layer).append(x); }

  std::vector<rows_of_floats> k, v, q;  ///< [layers]

 private:
  static rows_of_floats& at(std::vector<rows_of_floats>& x, int layer) { return x[static_cast<std::size_t>(layer)]; }
};

/// A sequence of recorded tokens, the windows over and over. The first token of all, which attention may treat as a
/// sink, comes once.
void fill(engine_sequence& sequence, recorder const& recorded, std::size_t tokens, executor_ref executor, bool quiet) {
  std::size_t const rows = recorded.k.front().all().rows;
  constexpr std::size_t step = 2048;
  progress bar("filling", tokens, quiet);
  for (std::size_t done = 0, at = 0; done < tokens;) {
    std::size_t const count = std::min({step, rows - at, tokens - done});
    for (std::size_t layer = 0; layer < recorded.k.size(); ++layer)
      sequence.append(static_cast<int>(layer), recorded.k[layer].rows(at, count), recorded.v[layer].rows(at, count),
                      executor);
    done += count;
    at = at + count < rows ? at + count : 1;
    bar.advance(count);
  }
}

/// Puts attention of one query over a part of the tokens behind that over those before. `sums`: [q_heads · head_dim],
/// not divided by l.
void merge_part(reference::attention_result const& part, std::span<softmax_state> states, std::span<float> sums) {
  std::size_t const d = sums.size() / states.size();
  for (std::size_t head = 0; head < states.size(); ++head) {
    double const m = part.score_max.data()[head], l = part.score_sum.data()[head];
    std::vector<float> sum(d);
    for (std::size_t c = 0; c < d; ++c) sum[c] = static_cast<float>(part.out.data()[head * d + c] * l);
    merge_into(states[head], sums.subspan(head * d, d), {static_cast<float>(m), static_cast<float>(l)}, sum);
  }
}

/// ‖got − expected‖ / ‖expected‖ of the query heads of one KV head of a layer, `out`: [q_heads · head_dim].
double error_of_head(engine_sequence const& sequence, model_shape const& shape, int layer, int kv_head,
                     view2d<float const> q, std::span<float const> out) {
  model_shape one = shape;
  one.q_heads = shape.q_heads / shape.kv_heads;
  one.kv_heads = 1;
  auto const d = static_cast<std::size_t>(shape.head_dim), width = d * static_cast<std::size_t>(one.q_heads),
             first_q = width * static_cast<std::size_t>(kv_head), first_k = d * static_cast<std::size_t>(kv_head),
             channels = static_cast<std::size_t>(shape.kv_channels()), tokens = sequence.tokens();
  constexpr std::size_t part = std::size_t{1} << 15;
  std::vector<float> k(part * channels), v(k);
  std::vector<softmax_state> states(static_cast<std::size_t>(one.q_heads));
  std::vector<float> expected(width);
  auto const last = static_cast<std::int64_t>(tokens - 1);
  for (std::size_t first = 0; first < tokens; first += part) {
    std::size_t const count = std::min(part, tokens - first);
    view2d<float> const keys(k.data(), count, channels), values(v.data(), count, channels);
    sequence.read(layer, first, keys, values);
    std::vector<std::int64_t> positions(count);
    std::iota(positions.begin(), positions.end(), static_cast<std::int64_t>(first));
    auto const found = reference::attention(reference::to_matrix(q.middle_cols(first_q, width)),
                                            reference::to_matrix(view2d<float const>(keys).middle_cols(first_k, d)),
                                            reference::to_matrix(view2d<float const>(values).middle_cols(first_k, d)),
                                            one, 1 / std::sqrt(static_cast<double>(d)), std::span(&last, 1), positions);
    merge_part(found, states, expected);
  }
  for (std::size_t i = 0; i < width; ++i) expected[i] /= states[i / d].l;
  reference::matrix const exact = reference::to_matrix({expected.data(), 1, width});
  return (reference::to_matrix({out.data() + first_q, 1, width}) - exact).norm() / exact.norm();
}

/// One call of attention for each layer, with the last token's queries.
void attend_all(engine const& cache, engine_sequence const& sequence, recorder const& recorded,
                std::vector<rows_of_floats>& out, executor_ref executor) {
  for (std::size_t layer = 0; layer < out.size(); ++layer) {
    attend_request const request{
        .sequence = &sequence, .q = recorded.q[layer].all(), .out = {out[layer].x.data(), 1, recorded.q[layer].cols}};
    cache.attend(static_cast<int>(layer), std::span(&request, 1), executor);
  }
}

/// The worst of some heads, spread over layers.
double worst_error(engine_sequence const& sequence, model_shape const& shape, recorder const& recorded,
                   std::vector<rows_of_floats> const& out, int checks, bool quiet) {
  progress bar("checking", static_cast<std::size_t>(checks), quiet);
  double worst = 0;
  for (int i = 0; i < checks; ++i) {
    int const layer = static_cast<int>(std::int64_t{shape.layers} * i / checks);
    auto const at = static_cast<std::size_t>(layer);
    worst = std::max(worst, error_of_head(sequence, shape, layer, i % shape.kv_heads, recorded.q[at].all(), out[at].x));
    bar.advance();
  }
  return worst;
}

void require_memory(byte_report const& bytes, std::string const& artifact) {
  std::size_t const machine = measure::total_memory_bytes();
  require(static_cast<double>(bytes.total()) < 0.95 * static_cast<double>(machine), errc::bad_value, artifact,
          ": a cache of ", bytes.total(), " bytes, expected one that fits the machine's ", machine, " (--tokens)");
}

struct million_report {
  std::size_t tokens = 0, cache_bytes = 0, f16_bytes = 0;
  double bits = 0, fill_seconds = 0, error = 0, bandwidth = 0;          ///< bandwidth: bytes per second
  double attend_seconds = 0, step_seconds = 0, ns_per_token_layer = 0;  ///< of all layers; with the weights

  double read_per_second() const { return static_cast<double>(cache_bytes) / attend_seconds; }
};

nlohmann::json to_json(million_report const& it) {
  return {{"tokens", it.tokens},
          {"cache_bytes", it.cache_bytes},
          {"f16_bytes", it.f16_bytes},
          {"bits", it.bits},
          {"fill_seconds", it.fill_seconds},
          {"attend_seconds", it.attend_seconds},
          {"step_seconds", it.step_seconds},
          {"ns_per_token_layer", it.ns_per_token_layer},
          {"gbps", it.read_per_second() / 1e9},
          {"share_of_bandwidth", it.read_per_second() / it.bandwidth},
          {"error", it.error}};
}

void print_report(million_report const& it) {
  constexpr double gibi = 1 << 30;
  print_table({{"tokens", fmt::format("{}", it.tokens)},
               {"cache, GiB", fmt::format("{:.2f}", static_cast<double>(it.cache_bytes) / gibi)},
               {"in f16, GiB", fmt::format("{:.2f}", static_cast<double>(it.f16_bytes) / gibi)},
               {"bits an element", fmt::format("{:.3f}", it.bits)},
               {"filled, tokens/s", fmt::format("{:.0f}", static_cast<double>(it.tokens) / it.fill_seconds)},
               {"attention of a step, s", fmt::format("{:.3f}", it.attend_seconds)},
               {"ns/token/layer", fmt::format("{:.1f}", it.ns_per_token_layer)},
               {"GB/s", fmt::format("{:.2f}", it.read_per_second() / 1e9)},
               {"bandwidth, %", fmt::format("{:.1f}", 100 * it.read_per_second() / it.bandwidth)},
               {"a step of the model, s", fmt::format("{:.3f}", it.step_seconds)},
               {"error", fmt::format("{:.1e}", it.error)}});
}

million_report measure_million(million_options const& options) {
  model_file opened(options.model, options.common.threads);
  std::size_t const tokens = options.tokens.front();
  auto const cache = runtime::make_cache(options.artifact, options.backend, opened.config, opened.file.hash(),
                                         {.max_tokens = tokens + page_tokens});
  model_shape const& shape = cache->info().shape;
  require(shape.local.layers.empty(), errc::unsupported, options.model,
          ": layers that see a window alone, expected all to see all tokens");
  require_memory(cache->bytes(), options.artifact);
  auto const windows = choose_windows(options.windows, opened.tokenizer, read_text(options.text), options.text.path);
  runtime::model const model(opened.file, opened.pool);
  recorder recorded(shape.layers);
  for (window const& ids : windows) model.forward(ids, &recorded);

  auto const sequence = cache->open(tokens + page_tokens);
  million_report report;
  report.tokens = tokens;
  report.fill_seconds = seconds_of([&] { fill(*sequence, recorded, tokens, opened.pool, options.common.quiet); });
  std::vector<rows_of_floats> out;
  for (rows_of_floats const& q : recorded.q) out.push_back({std::vector<float>(q.cols), q.cols});
  attend_all(*cache, *sequence, recorded, out, opened.pool);
  report.error = worst_error(*sequence, shape, recorded, out, options.checks, options.common.quiet);
  require(report.error < 0.05, errc::bad_value, "attention over ", tokens, " tokens is off by ", report.error,
          " from the reference");

  std::vector<double> attend, step;
  progress bar("attending", static_cast<std::size_t>(options.steps), options.common.quiet);
  for (int i = 0; i < options.steps; ++i) {
    attend.push_back(seconds_of([&] { attend_all(*cache, *sequence, recorded, out, opened.pool); }));
    step.push_back(seconds_of([&] { runtime::forward(model, std::span(windows.front()).subspan(1, 1), *sequence); }));
    sequence->truncate(tokens);
    bar.advance();
  }
  std::size_t const elements =
      2 * tokens * static_cast<std::size_t>(shape.layers) * static_cast<std::size_t>(shape.kv_channels());
  byte_report bytes = sequence->bytes();
  bytes.slack = 0;
  report.attend_seconds = measure::median(attend);
  report.step_seconds = measure::median(step);
  report.ns_per_token_layer = report.attend_seconds * 1e9 / static_cast<double>(tokens) / shape.layers;
  report.cache_bytes = bytes.total();
  report.f16_bytes = 2 * elements;
  report.bits = bytes.bits_per_element(elements);
  report.bandwidth = measure::read_bandwidth(opened.pool);
  return report;
}

}  // namespace

void add_million(CLI::App& bench) {
  auto* const command = bench.add_subcommand(
      "million", "one sequence of a million tokens in memory: keys and values of a text, over and over");
  auto const options = std::make_shared<million_options>();
  command->add_option("MODEL", options->model, "GGUF file")->required();
  command->add_option("--artifact", options->artifact, "calibrated cache")->type_name("FILE")->required();
  add_text(*command, options->text)->required();
  add_list(*command, "--tokens", options->tokens, "of the sequence, as in 64K; 1024K if not given",
           measure::parse_context)
      ->expected(1);
  command->add_option("--windows", options->windows.count, "of the text that the model reads")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  command->add_option("--context", options->windows.tokens, "tokens per window")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("--steps", options->steps, "times that are measured; the median counts")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  command->add_option("--checks", options->checks, "KV heads that are held against the reference")
      ->check(CLI::Range(1, 1 << 10))
      ->capture_default_str();
  add_backend(*command, options->backend);
  add_common(*command, options->common);
  command->callback([options] {
    check_outputs({options->common.json}, {options->model, options->artifact, options->text.path});
    million_report const report = measure_million(*options);
    write_json(options->common.json, to_json(report));
    if (!options->common.quiet) print_report(report);
  });
}

}  // namespace kvquant::tool
