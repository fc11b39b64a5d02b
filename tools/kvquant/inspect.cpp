#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>

#include "engines/artifact_label.hpp"
#include "kvquant/cache/cache_io.hpp"
#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/calibrate/statistics_io.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/format/int8_grid.hpp"
#include "runtime/mapped_file.hpp"
#include "tools/kvquant/common.hpp"

namespace kvquant::tool {

namespace {

struct inspect_options {
  common_options common;
  std::string path;
  bool tensors = false;
};

using table = std::vector<std::vector<std::string>>;

void show(inspect_options const& options, table const& rows, nlohmann::json const& json) {
  write_json(options.common.json, json);
  if (!options.common.quiet) print_table(rows);
}

/// At most 60 bytes, cut between characters.
std::string shorten(std::string_view value) {
  std::size_t most = 60;
  if (value.size() <= most) return std::string(value);
  while (most > 0 && (static_cast<unsigned char>(value[most]) & 0xc0) == 0x80) --most;
  return std::string(value.substr(0, most)) + "…";
}

std::string print(runtime::gguf_value const& value) {
  return std::visit(
      []<class T>(T const& it) -> std::string {
        if constexpr (std::is_same_v<T, std::string_view>)
          return shorten(it);
        else if constexpr (std::is_same_v<T, runtime::gguf_array>)
          return std::visit([](auto const& items) { return fmt::format("[{} values]", items.size()); }, it);
        else
          return fmt::format("{}", it);
      },
      value);
}

std::string print(std::vector<std::size_t> const& shape) { return fmt::format("{}", fmt::join(shape, " x ")); }

void inspect_gguf(inspect_options const& options) {
  auto const file = runtime::gguf_file::open(options.path);
  table rows = {
      {"GGUF", fmt::format("version {}, {:.1f} MiB", file.version(), static_cast<double>(file.bytes()) / 0x1p20)},
      {"hash", file.hash()}};
  nlohmann::json metadata, tensors = nlohmann::json::array();
  for (auto const& [key, value] : file.metadata()) {
    rows.push_back({std::string(key), print(value)});
    metadata[std::string(key)] = print(value);
  }
  std::map<std::string, std::pair<std::size_t, std::size_t>> by_type;  // tensors, bytes
  for (runtime::gguf_tensor const& it : file.tensors()) {
    auto const type = std::string(runtime::traits(it.type).name);
    by_type[type].first += 1;
    by_type[type].second += it.data.size();
    tensors.push_back({{"name", std::string(it.name)}, {"type", type}, {"shape", it.shape}});
    if (options.tensors) rows.push_back({std::string(it.name), type + " " + print(it.shape)});
  }
  for (auto const& [type, sum] : by_type)
    rows.push_back(
        {"tensors of " + type, fmt::format("{}, {:.1f} MiB", sum.first, static_cast<double>(sum.second) / 0x1p20)});
  show(options, rows,
       {{"kind", "gguf"},
        {"version", file.version()},
        {"hash", file.hash()},
        {"metadata", metadata},
        {"tensors", tensors}});
}

void add_origin(table& rows, provenance const& origin, model_shape const& shape) {
  rows.insert(
      rows.end(),
      {{"model", origin.model_name},
       {"model hash", origin.model_hash},
       {"shape", fmt::format("{} layers, {} query heads, {} KV heads x {}", shape.layers, shape.q_heads, shape.kv_heads,
                             shape.head_dim)},
       {"tokenizer hash", origin.tokenizer_hash},
       {"text hash", origin.text_hash},
       {"calibrated on", fmt::format("{} windows x {} tokens, seed {}", origin.samples, origin.context, origin.seed)},
       {"written by", "kvquant " + origin.library_version}});
  if (!shape.local.layers.empty())
    rows.push_back(
        {"local layers", fmt::format("{}, with a window of {} tokens", shape.local.layers.size(), shape.local.window)});
}

/// Mean squared error of normalised values by the fit's weights, in dB.
std::string decibels(codebook const& it) {
  return it.mass > 0 && it.objective > 0 ? fmt::format("{:.2f}", 10 * std::log10(it.objective / it.mass)) : "-";
}

/// Whether integers hold the levels of a side exactly, in every layer.
template <Format F>
std::string kind_of_levels(std::vector<layer_artifact> const& layers, codebook layer_artifact::*book,
                           channel_codes layer_artifact::*channels, int limit) {
  if (!F::fitted) return "fixed";
  auto const is_int8 = [&](std::vector<float> const& levels) { return int8_grid_of(levels, limit).holds_all; };
  bool const are_int8 = F::bits <= 4 && std::all_of(layers.begin(), layers.end(), [&](layer_artifact const& layer) {
                          auto const& tables = (layer.*channels).levels;
                          return is_by_channel<F> ? std::all_of(tables.begin(), tables.end(), is_int8)
                                                  : is_int8((layer.*book).decode_levels);
                        });
  return are_int8 ? "int8" : "float";
}

/// A side's levels, where it has one codebook, and Σ F over the calibration tokens and all channels.
nlohmann::json side_json(codebook const& book, std::vector<float> const& sensitivity) {
  nlohmann::json out = book;
  if (!book.levels.empty()) out["levels"] = book.levels;
  if (!book.decode_levels.empty()) out["decode_levels"] = book.decode_levels;
  out["sensitivity"] = std::accumulate(sensitivity.begin(), sensitivity.end(), 0.0);
  return out;
}

nlohmann::json layer_json(layer_artifact const& layer) {
  nlohmann::json out = {{"key", side_json(layer.key, layer.key_sensitivity)},
                        {"value", side_json(layer.value, layer.value_sensitivity)}};
  if (!layer.key_channels.widths.empty()) out["key_widths"] = layer.key_channels.widths;
  if (!layer.value_channels.widths.empty()) out["value_widths"] = layer.value_channels.widths;
  return out;
}

/// The widths of each head's channels, from head to head and from its first channel to its last, a bar for some of
/// them: the higher, the more bits. Empty where all are alike.
std::string width_map(channel_codes const& codes, model_shape const& shape) {
  constexpr std::array<std::string_view, 7> bars = {"▁", "▂", "▃", "▄", "▅", "▆", "█"};  // 1 to 4 bits by halves
  constexpr int most_bars = 72;
  if (codes.widths.empty()) return {};
  int per_head = std::clamp(most_bars / shape.kv_heads, 1, 16);
  while (shape.head_dim % per_head != 0) --per_head;
  int const channels = shape.head_dim / per_head;
  std::string out;
  for (int first = 0; first < shape.kv_channels(); first += channels) {
    if (first > 0 && first % shape.head_dim == 0 && per_head > 1) out += ' ';
    int const bits = std::accumulate(codes.widths.begin() + first, codes.widths.begin() + first + channels, 0);
    out += bars[static_cast<std::size_t>(std::lround(2.0 * bits / channels)) - 2];
  }
  return out;
}

void add_budget(table& rows, artifact_info const& info) {
  auto const add = [&](char const* what, int token_bits, double outliers) {
    if (token_bits == 0) return;
    double const codes = static_cast<double>(token_bits) / info.shape.head_dim, slots = 8 * sizeof(outlier) * outliers;
    rows.push_back({what, fmt::format("{:.3f}, of which {:.3f} in codes of 1 to 4 bits", codes + slots, codes)});
  };
  add("bits of a key", info.key_token_bits, info.outlier_fraction_k);
  add("bits of a value", info.value_token_bits, info.outlier_fraction_v);
}

void inspect_artifact(inspect_options const& options, safetensors_file const& file) {
  artifact_info const info = read_artifact_info(file);
  table rows = {{"artifact", info.spec}, {"hash", info.hash}};
  add_origin(rows, info.origin, info.shape);
  rows.insert(rows.end(),
              {{"weights", std::string(to_string(info.weights))},
               {"keys", std::string(to_string(info.keys))},
               {"outliers", fmt::format("{} of keys, {} of values", info.outlier_fraction_k, info.outlier_fraction_v)},
               {"sinks", std::to_string(info.sinks)},
               {"Q-Norm", info.q_norm ? "on" : "off"}});
  add_budget(rows, info);
  table layers = {{"layer", "keys, dB", "outliers, %", "values, dB", "outliers, %"}};
  table widths = {{"layer", "widths of keys, from 1 bit ▁ to 4 █", "of values"}};
  nlohmann::json reports = nlohmann::json::array();
  std::string key_levels, value_levels;
  visit_spec(info.spec, [&]<class S>(std::type_identity<S>) {
    artifact<S> const it = read_artifact<S>(file);
    key_levels = kind_of_levels<typename S::key_format>(it.layers, &layer_artifact::key, &layer_artifact::key_channels,
                                                        key_grid_limit);
    value_levels = kind_of_levels<typename S::value_format>(it.layers, &layer_artifact::value,
                                                            &layer_artifact::value_channels, value_grid_limit);
    rows.push_back({"levels", fmt::format("{} of keys, {} of values", key_levels, value_levels)});
    for (layer_artifact const& layer : it.layers) {
      layers.push_back({std::to_string(reports.size()), decibels(layer.key),
                        fmt::format("{:.3f}", 100 * layer.key.outlier_rate), decibels(layer.value),
                        fmt::format("{:.3f}", 100 * layer.value.outlier_rate)});
      widths.push_back({std::to_string(reports.size()), width_map(layer.key_channels, info.shape),
                        width_map(layer.value_channels, info.shape)});
      reports.push_back(layer_json(layer));
    }
  });
  show(options, rows,
       {{"kind", "artifact"},
        {"hash", info.hash},
        {"label", label_of(info)},
        {"info", info},
        {"key_levels", key_levels},
        {"value_levels", value_levels},
        {"layers", reports}});
  if (options.common.quiet) return;
  print_table(layers);
  if (info.key_token_bits > 0 || info.value_token_bits > 0) print_table(widths);
}

/// Masses over [−1, 1] in bins as wide as a plot needs.
std::vector<double> coarse_masses(histogram const& it) {
  constexpr std::size_t most_bins = 64;
  std::size_t const bins = it.bins().size();
  std::vector<double> out(std::min(bins, most_bins));
  for (std::size_t bin = 0; bin < bins; ++bin) out[bin * out.size() / bins] += it.bins()[bin].mass;
  return out;
}

/// How the normalised values of a side lie, each counted once and by its squared gradient.
nlohmann::json side_json(side_statistics const& it) {
  return {{"values", it.values},
          {"outliers", it.outliers},
          {"sensitivity", std::accumulate(it.sensitivity.begin(), it.sensitivity.end(), 0.0)},
          {"histogram", coarse_masses(it.of(fit_weights::none))},
          {"fisher_histogram", coarse_masses(it.of(fit_weights::fisher))}};
}

void inspect_statistics(inspect_options const& options, safetensors_file const& file) {
  saved_statistics const it = read_statistics(file);
  calibration_options const& observed = it.statistics.options();
  table rows = {{"statistics", fmt::format("{} layers x {} channels, {} bins", observed.layers, observed.kv_channels,
                                           observed.bins)}};
  add_origin(rows, it.origin, it.shape);
  rows.push_back(
      {"outliers", fmt::format("{} of keys, {} of values", observed.outlier_fraction_k, observed.outlier_fraction_v)});
  rows.push_back({"values seen per layer", std::to_string(it.statistics.layers().front().key.values)});
  nlohmann::json layers = nlohmann::json::array();
  for (layer_statistics const& layer : it.statistics.layers())
    layers.push_back({{"key", side_json(layer.key)}, {"value", side_json(layer.value)}});
  show(options, rows,
       {{"kind", "statistics"}, {"options", observed}, {"shape", it.shape}, {"origin", it.origin}, {"layers", layers}});
}

void inspect_sequence(inspect_options const& options) {
  runtime::mapped_file const mapped(options.path);
  sequence_info const it = sequence_file(mapped.bytes(), options.path).info();
  show(options,
       {{"sequence", it.spec},
        {"tokens",
         fmt::format("{}: {} sinks, {} in pages, {} in the tail", it.tokens, it.sinks, it.sealed, it.tail_tokens)},
        {"bytes", std::to_string(mapped.bytes().size())},
        {"shape", fmt::format("{} layers, {} KV heads x {}", it.layers, it.kv_heads, it.head_dim)},
        {"slots of a page", fmt::format("{} of keys, {} of values", it.geometry.k_slots, it.geometry.v_slots)},
        {"model hash", it.model_hash},
        {"artifact hash", it.artifact_hash}},
       {{"kind", "sequence"}, {"bytes", mapped.bytes().size()}, {"info", it}});
}

void inspect(inspect_options const& options) {
  check_outputs({options.common.json}, {options.path});
  std::array<char, 8> start{};
  std::ifstream(options.path, std::ios::binary).read(start.data(), start.size());
  std::string_view const magic(start.data(), start.size());
  if (magic.starts_with("GGUF")) return inspect_gguf(options);
  if (magic == sequence_magic) return inspect_sequence(options);
  auto const file = safetensors_file::read(options.path);
  auto const kind = file.metadata().find("kind");
  require(kind != file.metadata().end() && (kind->second == artifact_kind || kind->second == statistics_kind),
          errc::bad_file, options.path, ": expected a GGUF file, an artifact, calibration statistics or a sequence");
  if (kind->second == artifact_kind) return inspect_artifact(options, file);
  inspect_statistics(options, file);
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto* const command =
      app.add_subcommand("inspect", "what is in a GGUF file, an artifact, calibration statistics or a sequence");
  auto const options = std::make_shared<inspect_options>();
  command->add_option("FILE", options->path, "the file")->required();
  command->add_flag("--tensors", options->tensors, "list every tensor of a GGUF file");
  add_common(*command, options->common);
  command->callback([options] { inspect(*options); });
}

}  // namespace kvquant::tool
