#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "engines/artifact.hpp"
#include "engines/side_format.hpp"
#include "kvquant/calibrate/statistics_io.hpp"
#include "runtime/scoring.hpp"
#include "runtime/simulation/artifact_simulator.hpp"
#include "tools/kvquant/calibration_text.hpp"
#include "tools/kvquant/common.hpp"

namespace kvquant::tool {

namespace {

enum class q_norm_choice { automatic, on, off };

struct calibrate_options {
  common_options common;
  text_options text;
  std::string model, output, statistics_out, ranges_from;
  bool data_free = false;
  std::vector<std::string> from_statistics;
  std::vector<double> bits = {3};
  std::string format = "nuq";
  std::optional<double> given_outliers;
  window_choice windows;
  int sinks = 1;
  fit_weights weights = fit_weights::fisher;
  key_space keys = key_space::pre_rope;
  q_norm_choice q_norm = q_norm_choice::automatic;
  bool int8_levels = true;
  channel_levels levels_of = channel_levels::shared;

  bool by_channel() const { return format == adaptive::name; }
  double slots() const { return given_outliers.value_or(default_adaptive_outliers); }
};

/// First pass: the ranges of channels.
class range_observer final : public runtime::kv_hook {
 public:
  range_observer(calibrator& statistics, key_space space) : statistics_(statistics), space_(space) {}
  void keys_pre_rope(int layer, view2d<float> k) override {
    if (space_ == key_space::pre_rope) statistics_.observe_range(layer, k);
  }
  void keys_post_rope(int layer, view2d<float> k) override {
    if (space_ == key_space::post_rope) statistics_.observe_range(layer, k);
  }
  void values(int layer, view2d<float> v) override {
    if (statistics_.options().channel_bins > 0) statistics_.observe_value_range(layer, v);
  }

 private:
  calibrator& statistics_;
  key_space space_;
};

/// Second pass where no gradients are wanted.
class value_observer final : public runtime::kv_hook {
 public:
  value_observer(calibrator& statistics, key_space space) : statistics_(statistics), space_(space) {}
  void keys_pre_rope(int layer, view2d<float> k) override {
    if (space_ == key_space::pre_rope) statistics_.observe_keys(layer, k);
  }
  void keys_post_rope(int layer, view2d<float> k) override {
    if (space_ == key_space::post_rope) statistics_.observe_keys(layer, k);
  }
  void values(int layer, view2d<float> v) override { statistics_.observe_values(layer, v); }

 private:
  calibrator& statistics_;
  key_space space_;
};

view2d<float const> view(runtime::matrix const& m) {
  return {m.data(), static_cast<std::size_t>(m.rows()), static_cast<std::size_t>(m.cols())};
}

/// F: squared gradients.
runtime::matrix squared(view2d<float const> gradient) {
  runtime::matrix out(static_cast<Eigen::Index>(gradient.rows), static_cast<Eigen::Index>(gradient.cols));
  for (std::size_t row = 0; row < gradient.rows; ++row)
    std::transform(gradient.row(row).begin(), gradient.row(row).end(), out.row(static_cast<Eigen::Index>(row)).data(),
                   [](float g) { return g * g; });
  return out;
}

void observe_with_gradients(calibrator& statistics, key_space space, runtime::model const& model, window const& ids) {
  model.loss_and_gradients(ids, [&](int layer, runtime::kv_gradients const& it) {
    bool const pre = space == key_space::pre_rope;
    runtime::matrix const k_fisher = squared(pre ? it.dk_pre_rope : it.dk_post_rope), v_fisher = squared(it.dv);
    statistics.observe(layer, pre ? it.k_pre_rope : it.k_post_rope, it.v, view(k_fisher), view(v_fisher));
  });
}

calibration_options statistics_options(calibrate_options const& options, runtime::model_config const& config) {
  return {
      .layers = config.layers,
      .kv_channels = config.kv_channels(),
      .outlier_fraction_k = options.given_outliers.value_or(default_outliers),
      .outlier_fraction_v = options.given_outliers.value_or(default_outliers),
      .sinks = options.sinks,
      .max_tokens = static_cast<std::size_t>(options.windows.count) * static_cast<std::size_t>(options.windows.tokens),
      .channel_bins = options.by_channel() ? adaptive_channel_bins : 0};
}

/// What the pass fills: empty, or with the ranges of statistics that it is to be merged with.
calibrator begin_statistics(calibrate_options const& options, model_file const& opened) {
  calibration_options wanted = statistics_options(options, opened.config);
  if (options.ranges_from.empty()) return calibrator(wanted);
  saved_statistics const other = load_statistics(options.ranges_from);
  require(other.origin.model_hash == opened.file.hash() && other.keys == options.keys, errc::bad_format,
          options.ranges_from, ": statistics of ", subject_of(other), ", expected ",
          subject_of(options.keys, opened.config.name, opened.file.hash()));
  calibration_options const& theirs = other.statistics.options();
  wanted.max_tokens = theirs.max_tokens;  // bounds the first pass alone
  require(wanted == theirs, errc::bad_value, options.ranges_from, ": statistics of ", theirs.outlier_fraction_k,
          " outliers and ", theirs.sinks, " sinks, expected ", wanted.outlier_fraction_k, " and ", wanted.sinks);
  calibrator statistics(wanted);
  statistics.use_ranges_of(other.statistics);
  return statistics;
}

calibrator gather(calibrate_options const& options, calibrator statistics, runtime::model const& model,
                  std::vector<window> const& windows) {
  bool const has_ranges = statistics.ranges_frozen();
  progress bar("calibrating", windows.size() * (has_ranges ? 3 : 4), options.common.quiet);
  if (!has_ranges) {
    range_observer ranges(statistics, options.keys);
    for (window const& ids : windows) {
      model.forward(ids, &ranges);
      bar.advance();
    }
    statistics.freeze_ranges();
  }
  value_observer values(statistics, options.keys);
  for (window const& ids : windows) {
    if (uses_fisher(options.weights))
      observe_with_gradients(statistics, options.keys, model, ids);
    else
      model.forward(ids, &values);
    bar.advance(3);  // a pass with gradients costs about three without
  }
  return statistics;
}

/// Mean loss over the first windows with an artifact at work.
double simulated_loss(any_artifact const& it, runtime::model const& model, std::vector<window> const& windows) {
  constexpr std::size_t most_windows = 2;
  std::unique_ptr<runtime::simulator> hook;
  visit_artifact(it, [&]<class S>(artifact<S> const& typed) {
    hook = std::make_unique<runtime::artifact_simulator<S>>(typed, it.info.spec, model.executor());
  });
  double sum = 0;
  std::size_t predictions = 0;
  for (std::size_t i = 0; i < std::min(most_windows, windows.size()); ++i) {
    runtime::matrix const hidden = model.forward(windows[i], hook.get());
    auto const targets = std::span(windows[i]).subspan(1);
    for (double const nll :
         runtime::negative_log_likelihood(model, view(hidden).middle_rows(0, targets.size()), targets))
      sum += nll;
    predictions += targets.size();
  }
  return sum / static_cast<double>(predictions);
}

/// One calibration: where its statistics come from, and the model if it is at hand.
struct calibration {
  saved_statistics saved;
  runtime::model const* model = nullptr;
  std::vector<window> windows;
};

/// "nuq3"; of formats without a width of their own the name alone.
std::string spec_name(calibrate_options const& options, double bits) {
  return options.by_channel() ? options.format : options.format + fmt::format("{}", bits);
}

/// `auto` asks the model, and only at 2 bits, where rounding shifts moments enough to matter.
any_artifact fit_with_q_norm(calibrate_options const& options, calibration const& from, double bits) {
  fit_options how{.shape = from.saved.shape,
                  .keys = from.saved.keys,
                  .weights = options.weights,
                  .q_norm = options.q_norm == q_norm_choice::on,
                  .int8_levels = options.int8_levels,
                  .by_channel = {.budget = {bits, options.slots()}, .levels = options.levels_of},
                  .origin = from.saved.origin};
  std::string const spec = spec_name(options, bits);
  any_artifact plain = fit(spec, from.saved.statistics, how);
  bool narrow = false;
  visit_spec(spec, [&]<class S>(std::type_identity<S>) { narrow = S::key_format::fitted && S::key_format::bits <= 2; });
  if (options.q_norm != q_norm_choice::automatic || !narrow || from.model == nullptr) return plain;
  how.q_norm = true;
  any_artifact normed = fit(spec, from.saved.statistics, how);
  return simulated_loss(normed, *from.model, from.windows) < simulated_loss(plain, *from.model, from.windows) ? normed
                                                                                                              : plain;
}

std::string output_path(calibrate_options const& options, double bits) {
  std::string path = options.output;
  if (path.empty())
    path = fs::path(options.model.empty() ? options.from_statistics.front() : options.model).stem().string() + "-" +
           options.format + "{bits}.kvq";
  std::string const placeholder = "{bits}";
  if (auto const at = path.find(placeholder); at != std::string::npos)
    return path.replace(at, placeholder.size(), fmt::format("{}", bits));
  require(options.bits.size() == 1, errc::bad_value, "-o ", path, ": expected {bits} in the name for several --bits");
  return path;
}

/// Mean weighted squared error of normalised values, in dB: what a further bit should lower by about 6.
double decibels(std::vector<layer_artifact> const& layers, codebook layer_artifact::*side) {
  double error = 0, mass = 0;
  for (layer_artifact const& layer : layers) {
    error += (layer.*side).objective;
    mass += (layer.*side).mass;
  }
  return error > 0 && mass > 0 ? 10 * std::log10(error / mass) : 0;
}

void write_artifacts(calibrate_options const& options, calibration const& from) {
  std::vector<std::vector<std::string>> table = {{"artifact", "format", "keys, dB", "values, dB", "Q-Norm", "hash"}};
  nlohmann::json rows = nlohmann::json::array();
  for (double const bits : options.bits) {
    std::string const path = output_path(options, bits);
    any_artifact it = fit_with_q_norm(options, from, bits);
    save(it, path);
    artifact_info const& info = it.info;
    double const key = decibels(it.layers, &layer_artifact::key);
    double const value = decibels(it.layers, &layer_artifact::value);
    table.push_back({path, info.spec, fmt::format("{:.2f}", key), fmt::format("{:.2f}", value),
                     info.q_norm ? "on" : "off", info.hash});
    rows.push_back({{"path", path},
                    {"spec", info.spec},
                    {"key_error_db", key},
                    {"value_error_db", value},
                    {"q_norm", info.q_norm},
                    {"hash", info.hash}});
  }
  write_json(options.common.json, {{"rows", rows}});
  if (!options.common.quiet) print_table(table);
}

saved_statistics merge_statistics(std::vector<std::string> const& paths) {
  saved_statistics merged = load_statistics(paths.front());
  for (std::size_t i = 1; i < paths.size(); ++i) try {
      merge(merged, load_statistics(paths[i]));
    } catch (error const& failure) {
      throw error{failure.code, text(paths[i], " with ", paths.front(), ": ", failure.what())};
    }
  return merged;
}

/// What the command line alone tells.
void check_usage(calibrate_options const& options) try {
  require(options.model.empty() != options.from_statistics.empty(), errc::bad_value,
          "calibrate: expected either a MODEL or --from-stats");
  require(options.model.empty() || options.data_free || !options.text.path.empty(), errc::bad_value,
          "calibrate: expected --text or --data-free");
  // The last token predicts nothing: without another beside the sinks there is nothing to learn from.
  require(options.model.empty() || options.sinks <= options.windows.tokens - 2, errc::bad_value, "--sinks ",
          options.sinks, ": expected at most ", options.windows.tokens - 2,
          ", two fewer than a window has tokens (--context)");
  require(options.from_statistics.empty() || options.by_channel() || !options.given_outliers, errc::bad_value,
          "--outliers excludes --from-stats: the statistics were gathered within ranges that leave them out");
  for (double const bits : options.bits) {
    visit_spec(spec_name(options, bits), [](auto) {});
    output_path(options, bits);
  }
} catch (error const& failure) {
  throw CLI::ValidationError(failure.what());
}

void check_files(calibrate_options const& options) {
  std::vector<std::string> outputs = {options.common.json, options.statistics_out}, inputs = options.from_statistics;
  for (double const bits : options.bits) outputs.push_back(output_path(options, bits));
  for (std::string const& input : {options.model, options.text.path, options.ranges_from})
    if (!input.empty()) inputs.push_back(input);
  check_outputs(outputs, inputs);
}

void calibrate(calibrate_options const& options) {
  check_usage(options);
  check_files(options);
  if (!options.from_statistics.empty()) {
    calibration from{merge_statistics(options.from_statistics), nullptr, {}};
    write_artifacts(options, from);
    if (!options.statistics_out.empty()) save(from.saved, options.statistics_out);
    return;
  }
  std::string const content = options.data_free ? "" : read_text(options.text);
  model_file opened(options.model, options.common.threads);
  std::vector<window> windows;
  if (options.data_free)
    require_bos(opened, options.model);
  else
    windows = choose_windows(options.windows, opened.tokenizer, content, options.text.path);
  calibrator empty = begin_statistics(options, opened);
  runtime::model const model(opened.file, opened.pool);
  if (options.data_free) windows = write_windows(options.windows, model, opened, options.common.quiet);
  provenance const origin{opened.config.name,      opened.file.hash(),
                          opened.tokenizer.hash(), options.data_free ? std::string(own_text) : text_hash(content),
                          options.windows.count,   options.windows.tokens,
                          options.windows.seed};
  calibration const from{
      {gather(options, std::move(empty), model, windows), runtime::shape_of(opened.config), options.keys, origin},
      &model,
      windows};
  if (!options.statistics_out.empty()) save(from.saved, options.statistics_out);
  write_artifacts(options, from);
}

/// What decides how statistics become levels.
void add_fit_choices(CLI::App& command, calibrate_options& options) {
  add_choice<fit_weights>(command, "--weights", options.weights, "by what a value counts in the fit",
                          {{"fisher", fit_weights::fisher},
                           {"fisher-unscaled", fit_weights::fisher_unscaled},
                           {"activation", fit_weights::activation},
                           {"none", fit_weights::none}});
  add_choice<key_space>(command, "--keys", options.keys, "where keys are quantized",
                        {{"pre-rope", key_space::pre_rope}, {"post-rope", key_space::post_rope}});
  add_choice<q_norm_choice>(
      command, "--q-norm", options.q_norm,
      "decode levels with the moments restored; auto: where it lowers the loss at 2 bits",
      {{"auto", q_norm_choice::automatic}, {"on", q_norm_choice::on}, {"off", q_norm_choice::off}});
  add_choice<channel_levels>(command, "--channel-levels", options.levels_of,
                             "adaptive: one set of levels for eight channels of a head, or one per channel",
                             {{"shared", channel_levels::shared}, {"own", channel_levels::own}});
  add_choice<bool>(command, "--levels", options.int8_levels,
                   "fitted levels that codes read as: rounded so that integers hold them exactly, or as fitted",
                   {{"int8", true}, {"float", false}});
}

/// "nuq3" says what "nuq" and --bits 3 do, "adaptive2.5" likewise.
void split_off_width(calibrate_options& options, bool bits_are_given) {
  if (options.format.find_first_of("0123456789") == std::string::npos) return;
  side_format const named = parse_side_format(options.format);
  require(!bits_are_given, errc::bad_value, "--format ", options.format, ": expected ", named.id.name,
          " beside --bits");
  require(options.format.find('-') == std::string::npos, errc::bad_value, "--format ", options.format,
          ": expected outliers by --outliers");
  options.bits = {named.by_channel() ? named.bits : named.id.bits};
  options.format = named.id.name;
}

}  // namespace

void add_calibrate(CLI::App& app) {
  auto* const command = app.add_subcommand("calibrate", "learn codebooks and ranges from a model and a text");
  auto const options = std::make_shared<calibrate_options>();
  command->add_option("MODEL", options->model, "GGUF file");
  auto* const text = add_text(*command, options->text);
  command
      ->add_flag("--data-free", options->data_free,
                 "in place of a text: windows that the model writes itself, from BOS and --seed on")
      ->excludes(text)
      ->excludes(command->get_option("--remove"));
  command->add_option("-o,--output", options->output, "artifact to write; {bits} stands for the width")
      ->type_name("FILE");
  command->add_option("--bits", options->bits, "widths, all from one pass: 4,3,2")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  command
      ->add_option("--format", options->format,
                   "datatype family: nuq, nf, int, adaptive, or f of 16 bits; nuq3 is nuq at --bits 3")
      ->capture_default_str();
  command
      ->add_option("--outliers", options->given_outliers,
                   "fraction of values kept sparse: 0.01; adaptive, which pays them out of --bits: 0.005")
      ->check(CLI::Range(0.0, 0.5));
  command->add_option("--samples", options->windows.count, "windows")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--context", options->windows.tokens, "tokens per window")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  command->add_option("--sinks", options->sinks, "first tokens kept exact")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  add_fit_choices(*command, *options);
  command->add_option("--seed", options->windows.seed, "of the windows' starts")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--stats", options->statistics_out, "keep the statistics of the pass")->type_name("FILE");
  command
      ->add_option("--ranges", options->ranges_from, "use the key ranges of these statistics, to be merged with them")
      ->type_name("STATS");
  auto* const from_statistics =
      command
          ->add_option("--from-stats", options->from_statistics, "fit these (merged) statistics again, without a model")
          ->type_name("STATS");
  for (char const* const settled :
       {"--text", "--data-free", "--samples", "--context", "--sinks", "--keys", "--seed", "--ranges"})
    from_statistics->excludes(command->get_option(settled));
  add_common(*command, options->common);
  command->callback([options, command] {
    split_off_width(*options, command->count("--bits") > 0);
    calibrate(*options);
  });
}

}  // namespace kvquant::tool
