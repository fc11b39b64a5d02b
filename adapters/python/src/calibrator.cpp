#include <mutex>
#include <optional>
#include <shared_mutex>

#include "adapters/python/src/bindings.hpp"
#include "engines/artifact.hpp"
#include "engines/side_format.hpp"
#include "kvquant/calibrate/json_io.hpp"
#include "kvquant/calibrate/statistics_io.hpp"

namespace kvquant::python {

namespace {

using namespace nb::literals;

constexpr std::array<std::string_view, 2> channel_level_names = {"shared", "own"};

/// Statistics of one model. Any thread may call: layers are observed side by side, everything else waits for them.
class shared_calibrator {
 public:
  explicit shared_calibrator(saved_statistics saved)
      : saved_(std::move(saved)), layers_(static_cast<std::size_t>(saved_.shape.layers)) {}

  model_shape const& shape() const { return saved_.shape; }
  key_space keys() const { return saved_.keys; }
  calibration_options const& options() const { return saved_.statistics.options(); }

  /// `f(statistics)` while no other call sees the layer.
  template <class F>
  void observe(int layer, F&& f) {
    std::shared_lock const others(all_);
    if (layer >= 0 && layer < shape().layers) {
      std::lock_guard const mine(layers_[static_cast<std::size_t>(layer)]);
      f(saved_.statistics);
    } else {
      f(saved_.statistics);  // refuses it
    }
  }
  /// `f(saved statistics)` while no other call sees them.
  template <class F>
  auto alone(F&& f) {
    std::lock_guard const lock(all_);
    return f(saved_);
  }
  /// The same of two.
  template <class F>
  void with(shared_calibrator& other, F&& f) {
    require(this != &other, errc::bad_value, "calibration: statistics cannot be merged with themselves");
    std::scoped_lock const lock(all_, other.all_);
    f(saved_, other.saved_);
  }

 private:
  std::shared_mutex all_;
  saved_statistics saved_;
  std::vector<std::mutex> layers_;
};

shared_calibrator make_calibrator(model_shape const& shape, std::size_t max_tokens, nb::handle outliers, int sinks,
                                  bool adaptive_too, std::string const& keys, provenance const& origin) {
  auto const [fraction_k, fraction_v] = fractions_from(outliers, "outliers");
  calibration_options const options{.layers = shape.layers,
                                    .kv_channels = shape.kv_channels(),
                                    .outlier_fraction_k = fraction_k,
                                    .outlier_fraction_v = fraction_v,
                                    .sinks = sinks,
                                    .max_tokens = max_tokens,
                                    .channel_bins = adaptive_too ? adaptive_channel_bins : 0};
  return shared_calibrator(
      {calibrator(options), shape, enum_named<key_space>(keys, detail::key_space_names, "keys"), origin});
}

void observe_range(shared_calibrator& self, int layer, nb::handle k, nb::handle v) {
  input_rows const keys(k, kv_rows("k", self.shape()));
  std::optional<input_rows> values;
  if (!v.is_none()) values.emplace(v, kv_rows("v", self.shape()));
  nb::gil_scoped_release const released;
  self.observe(layer, [&](calibrator& statistics) {
    require(statistics.options().channel_bins == 0 || values.has_value(), errc::bad_value,
            "calibration: the ranges of values are needed too, where statistics are for adaptive");
    statistics.observe_range(layer, keys.view());
    if (statistics.options().channel_bins > 0) statistics.observe_value_range(layer, values->view());
  });
}

void observe(shared_calibrator& self, int layer, nb::handle k, nb::handle v, nb::handle k_squared,
             nb::handle v_squared) {
  input_rows const keys(k, kv_rows("k", self.shape())), values(v, kv_rows("v", self.shape()));
  std::optional<input_rows> k_weights, v_weights;
  if (!k_squared.is_none()) k_weights.emplace(k_squared, kv_rows("k_grad_squared", self.shape()));
  if (!v_squared.is_none()) v_weights.emplace(v_squared, kv_rows("v_grad_squared", self.shape()));
  nb::gil_scoped_release const released;
  auto const view = [](std::optional<input_rows> const& weights) {
    return weights ? weights->view() : view2d<float const>{};
  };
  self.observe(layer, [&](calibrator& statistics) {
    statistics.observe(layer, keys.view(), values.view(), view(k_weights), view(v_weights));
  });
}

void merge(shared_calibrator& self, shared_calibrator& other) {
  nb::gil_scoped_release const released;
  self.with(other, [](saved_statistics& mine, saved_statistics const& theirs) { merge(mine, theirs); });
}

/// The format by its name, with what else was said of it.
side_format format_from(std::string const& name, std::optional<double> bits, std::optional<double> outliers) {
  std::string const full = bits ? text(name, *bits) : name;
  side_format format = parse_side_format(full);
  if (outliers) format.outlier_fraction = *outliers;
  if (format.by_channel() && !outliers && full.find('-') == std::string::npos)
    format.outlier_fraction = default_adaptive_outliers;
  return format;
}

any_artifact fit_format(shared_calibrator& self, std::string const& name, std::optional<double> bits,
                        std::optional<double> outliers, std::string const& weights, bool q_norm, bool int8_levels,
                        std::string const& levels) {
  side_format const format = format_from(name, bits, outliers);
  bool const outliers_named = outliers.has_value() || name.find('-') != std::string::npos;
  auto const weights_chosen = enum_named<fit_weights>(weights, detail::weight_names, "weights");
  auto const levels_chosen = enum_named<channel_levels>(levels, channel_level_names, "channel_levels");
  nb::gil_scoped_release const released;
  return self.alone([&](saved_statistics const& saved) {
    calibration_options const& observed = saved.statistics.options();
    bool const gathered_so = observed.outlier_fraction_k == format.outlier_fraction &&
                             observed.outlier_fraction_v == format.outlier_fraction;
    require(format.by_channel() || !outliers_named || gathered_so, errc::bad_value, "fit: ", name, " with ",
            format.outlier_fraction, " outliers, the statistics were gathered within ranges that leave out ",
            observed.outlier_fraction_k, " of keys and ", observed.outlier_fraction_v, " of values");
    return fit(to_string(format.id), saved.statistics,
               {.shape = saved.shape,
                .keys = saved.keys,
                .weights = weights_chosen,
                .q_norm = q_norm,
                .int8_levels = int8_levels,
                .by_channel = {.budget = {format.bits, format.outlier_fraction}, .levels = levels_chosen},
                .origin = saved.origin});
  });
}

void bind_observing(nb::class_<shared_calibrator>& calibrator) {
  calibrator
      .def("observe_range", &observe_range, "layer"_a, "k"_a, "v"_a.none() = nb::none(),
           nb::sig("def observe_range(self, layer: int, k: Array, v: Array | None = None) -> None"),
           "First pass: the ranges of a layer's keys in one window, [tokens, kv_heads, head_dim] or [tokens, "
           "kv_channels], from its first token on. v, the values, is needed for adaptive alone.")
      .def(
          "freeze_ranges",
          [](shared_calibrator& self) {
            nb::gil_scoped_release const released;
            self.alone([](saved_statistics& it) { it.statistics.freeze_ranges(); });
          },
          "Ends the first pass.")
      .def(
          "use_ranges_of",
          [](shared_calibrator& self, shared_calibrator& other) {
            nb::gil_scoped_release const released;
            self.with(other, [](saved_statistics& mine, saved_statistics const& theirs) {
              mine.statistics.use_ranges_of(theirs.statistics);
            });
          },
          "other"_a, "Takes the frozen ranges of another instead of a first pass, so that both can be merged.")
      .def("observe", &observe, "layer"_a, "k"_a, "v"_a, "k_grad_squared"_a.none() = nb::none(),
           "v_grad_squared"_a.none() = nb::none(),
           nb::sig("def observe(self, layer: int, k: Array, v: Array, k_grad_squared: Array | None = None, "
                   "v_grad_squared: Array | None = None) -> None"),
           "Second pass: a layer's keys and values in one window, [tokens, kv_heads, head_dim] or [tokens, "
           "kv_channels], from its first token on, and the squared gradients of the loss with respect to them, of the "
           "same shape.")
      .def("merge", &merge, "other"_a,
           "Adds what another has seen of the same model. Options have to be the same, and ranges, once frozen.");
}

void bind_results(nb::class_<shared_calibrator>& calibrator) {
  calibrator
      .def(
          "save",
          [](shared_calibrator& self, std::filesystem::path const& path) {
            nb::gil_scoped_release const released;
            self.alone([&](saved_statistics const& it) { save(it, path); });
          },
          "path"_a, "Writes the statistics, for Calibrator.load and `kvquant calibrate --from-stats`.")
      .def_static(
          "load",
          [](std::filesystem::path const& path) {
            nb::gil_scoped_release const released;
            return new shared_calibrator(load_statistics(path));  // Python's from here on
          },
          "path"_a, "Statistics of a file of ours or of `kvquant calibrate --stats`.")
      .def(
          "fit", &fit_format, "format"_a = "nuq3", nb::kw_only(), "bits"_a = nb::none(), "outliers"_a = nb::none(),
          "weights"_a = "fisher", "q_norm"_a = false, "int8_levels"_a = true, "channel_levels"_a = "shared",
          "Fits a format: \"nuq3\", \"nuq3-1%\", \"nf4\", \"int8\", \"adaptive2.5-0.5%\"; or a family with bits and "
          "outliers beside it. outliers: of adaptive, the fraction of a page's elements kept sparse, paid out of bits, "
          "0.005 if not given; of others they are those of the statistics. weights: by what a value counts, \"fisher\" "
          "(squared gradients), \"fisher-unscaled\", \"activation\" or \"none\". q_norm: restore the moments. "
          "int8_levels: round what codes read as so that integers hold it. channel_levels: of adaptive, one set of "
          "levels for eight channels of a head (\"shared\") or one for each (\"own\").");
}

}  // namespace

void bind_calibrator(nb::module_& module) {
  nb::class_<shared_calibrator> calibrator(
      module, "Calibrator",
      "Gathers statistics of keys, values and gradients from whatever framework, in two passes over windows of tokens, "
      "and fits formats to them. Different layers may be observed from different threads at once.");
  calibrator.def(
      "__init__",
      [](shared_calibrator* self, model_shape const& shape, std::size_t max_tokens, nb::object const& outliers,
         int sinks, bool adaptive, std::string const& keys, provenance const& origin) {
        new (self) shared_calibrator(make_calibrator(shape, max_tokens, outliers, sinks, adaptive, keys, origin));
      },
      "shape"_a, nb::kw_only(), "max_tokens"_a, "outliers"_a = 0.01, "sinks"_a = 1, "adaptive"_a = false,
      "keys"_a = "pre_rope", "origin"_a = provenance{},
      nb::sig("def __init__(self, shape: Shape, *, max_tokens: int, outliers: float | tuple[float, float] = 0.01, "
              "sinks: int = 1, adaptive: bool = False, keys: str = 'pre_rope', origin: Origin = ...) -> None"),
      "max_tokens: as many as will be observed, of all that will be merged. outliers: the fraction of values kept "
      "sparse, of keys and of values. sinks: first tokens of a window, which stay exact and are not learned from. "
      "adaptive: gather what the format `adaptive` needs too. keys: \"pre_rope\", or \"post_rope\" for comparison.");
  bind_observing(calibrator);
  bind_results(calibrator);
  calibrator.def_prop_ro("shape", &shared_calibrator::shape)
      .def_prop_ro("keys", [](shared_calibrator const& it) { return std::string(to_string(it.keys())); })
      .def_prop_ro("sinks", [](shared_calibrator const& it) { return it.options().sinks; })
      .def_prop_ro("max_tokens", [](shared_calibrator const& it) { return it.options().max_tokens; })
      .def_prop_ro(
          "outliers",
          [](shared_calibrator const& it) {
            return std::pair(it.options().outlier_fraction_k, it.options().outlier_fraction_v);
          },
          "Fractions of keys and of values.")
      .def_prop_ro("adaptive", [](shared_calibrator const& it) { return it.options().channel_bins > 0; })
      .def_prop_ro("ranges_frozen",
                   [](shared_calibrator& it) {
                     return it.alone([](saved_statistics const& saved) { return saved.statistics.ranges_frozen(); });
                   })
      .def_prop_rw(
          "origin",
          [](shared_calibrator& it) { return it.alone([](saved_statistics const& saved) { return saved.origin; }); },
          [](shared_calibrator& it, provenance const& origin) {
            it.alone([&](saved_statistics& saved) { saved.origin = origin; });
          },
          "Where the statistics come from; artifacts carry it.");
}

}  // namespace kvquant::python
