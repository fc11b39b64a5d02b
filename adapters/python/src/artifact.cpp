#include <algorithm>

#include "adapters/python/src/bindings.hpp"
#include "engines/artifact.hpp"
#include "engines/artifact_label.hpp"
#include "engines/engines.hpp"
#include "kvquant/calibrate/json_io.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "kvquant/format/int8_grid.hpp"

namespace kvquant::python {

namespace {

using namespace nb::literals;

layer_artifact const& layer_of(any_artifact const& it, int layer) {
  if (layer < 0 || layer >= it.info.shape.layers)
    throw nb::index_error(text("layer ", layer, ", expected 0 to ", it.info.shape.layers - 1).c_str());
  return it.layers[static_cast<std::size_t>(layer)];
}

side side_from(std::string const& name) { return enum_named<side>(name, side_names, "side"); }

nb::object ranges_to_numpy(std::vector<value_range> const& ranges) {
  std::vector<float> flat;
  for (value_range const range : ranges) flat.insert(flat.end(), {range.low(), range.high()});
  return to_numpy<float>(flat, {ranges.size(), 2});
}

nb::object levels_of(any_artifact const& it, int layer, std::string const& name, bool encode) {
  layer_artifact const& of = layer_of(it, layer);
  codebook const& book = side_from(name) == side::key ? of.key : of.value;
  std::vector<float> const& levels = encode ? book.levels : book.decode_levels;
  return to_numpy<float>(levels, {levels.size()});
}

nb::object sensitivity_of(any_artifact const& it, int layer, std::string const& name) {
  layer_artifact const& of = layer_of(it, layer);
  std::vector<float> const& sums = side_from(name) == side::key ? of.key_sensitivity : of.value_sensitivity;
  return to_numpy<float>(sums, {sums.size()});
}

nb::object widths_of(any_artifact const& it, int layer, std::string const& name) {
  layer_artifact const& of = layer_of(it, layer);
  auto const& widths = (side_from(name) == side::key ? of.key_channels : of.value_channels).widths;
  return to_numpy<std::uint8_t>(widths, {widths.size()});
}

std::pair<double, double> code_bits(artifact_info const& info) {
  std::pair<double, double> bits;
  visit_spec(info.spec, [&]<class S>(std::type_identity<S>) { bits = {S::key_format::bits, S::value_format::bits}; });
  if (info.key_token_bits > 0) bits.first = static_cast<double>(info.key_token_bits) / info.shape.head_dim;
  if (info.value_token_bits > 0) bits.second = static_cast<double>(info.value_token_bits) / info.shape.head_dim;
  return bits;
}

/// A copy of `from` to be rounded in place.
output_rows copy_of(input_rows const& from, row_shape const& expected) {
  output_rows to(nb::none(), expected, from.rows(), from.by_heads());
  for (std::size_t row = 0; row < from.rows(); ++row)
    std::copy(from.view().row(row).begin(), from.view().row(row).end(), to.view().row(row).begin());
  return to;
}

std::pair<nb::object, nb::object> round_trip(any_artifact const& it, int layer, nb::handle k, nb::handle v) {
  layer_of(it, layer);
  row_shape const keys = kv_rows("k", it.info.shape), values = kv_rows("v", it.info.shape);
  output_rows const k_out = copy_of(input_rows(k, keys), keys), v_out = copy_of(input_rows(v, values), values);
  {
    nb::gil_scoped_release const released;
    round_keys(it, layer, k_out.view());
    round_values(it, layer, v_out.view());
  }
  return {k_out.python(), v_out.python()};
}

/// One side of artifacts that are made from codebooks: what a code is found by and reads as.
struct given_levels {
  std::vector<float> levels, decode_levels;  // [layers, 2^bits]
  std::size_t count = 0;
  bool alike;  // codes read as what they are found by

  given_levels(nb::handle encode, nb::handle decode, char const* name, std::size_t layers, std::size_t per_layer)
      : levels(read_array(encode, name, {layers, per_layer})), count(per_layer), alike(decode.is_none()) {
    decode_levels = decode.is_none() ? levels : read_array(decode, name, {layers, per_layer});
  }
  codebook of(std::size_t layer, int grid_limit, bool int8_levels) const {
    auto const cut = [&](std::vector<float> const& all) {
      auto const first = all.begin() + static_cast<std::ptrdiff_t>(layer * count);
      return std::vector(first, first + static_cast<std::ptrdiff_t>(count));
    };
    codebook book{cut(levels), cut(decode_levels), {}, 0, 0, 0};
    if (int8_levels) snap_to_int8_grid(book.decode_levels, grid_limit);
    if (alike) book.levels = book.decode_levels;
    return book;
  }
};

any_artifact from_codebooks(model_shape const& shape, int bits, nb::handle key_ranges, nb::handle key_levels,
                            nb::handle value_levels, nb::handle key_decode, nb::handle value_decode,
                            nb::handle outliers, int sinks, bool int8_levels, std::string const& keys,
                            std::string const& weights, provenance const& origin) {
  validate(shape);
  if (bits < 2 || bits > 4) throw nb::value_error(text("bits: ", bits, ", expected 2, 3 or 4").c_str());
  auto const layers = static_cast<std::size_t>(shape.layers), channels = static_cast<std::size_t>(shape.kv_channels());
  std::size_t const count = std::size_t{1} << bits;
  auto const ranges = read_array(key_ranges, "key_ranges", {layers, channels, 2});
  given_levels const k(key_levels, key_decode, "key_levels", layers, count);
  given_levels const v(value_levels, value_decode, "value_levels", layers, count);
  auto const [fraction_k, fraction_v] = fractions_from(outliers, "outliers");
  any_artifact made = artifact<spec<nuq<3>, nuq<3>>>{};
  made.info = {.spec = text("nuq", bits),
               .shape = shape,
               .outlier_fraction_k = fraction_k,
               .outlier_fraction_v = fraction_v,
               .sinks = sinks,
               .keys = enum_named<key_space>(keys, detail::key_space_names, "keys"),
               .weights = enum_named<fit_weights>(weights, detail::weight_names, "weights"),
               .q_norm = !key_decode.is_none() || !value_decode.is_none(),
               .origin = origin,
               .hash = {}};
  for (std::size_t layer = 0; layer < layers; ++layer) {
    layer_artifact one{{},
                       k.of(layer, key_grid_limit, int8_levels),
                       v.of(layer, value_grid_limit, int8_levels),
                       std::vector<float>(channels),
                       std::vector<float>(channels)};
    for (std::size_t channel = 0; channel < channels; ++channel) {
      float const* const range = ranges.data() + 2 * (layer * channels + channel);
      one.key_ranges.push_back(make_range(range[0], range[1]));
    }
    made.layers.push_back(std::move(one));
  }
  return checked(made);
}

void bind_making(nb::class_<any_artifact>& artifact) {
  artifact
      .def_static(
          "load",
          [](std::filesystem::path const& path) {
            nb::gil_scoped_release const released;
            return load_any_artifact(path);
          },
          "path"_a, "Reads an artifact file.")
      .def_static(
          "exact", [](model_shape const& shape) { return any_artifact(make_passthrough_artifact(shape)); }, "shape"_a,
          "Binary16 throughout: what other formats are compared with. It needs no calibration.")
      .def_static(
          "from_codebooks", &from_codebooks, "shape"_a, "bits"_a, "key_ranges"_a, "key_levels"_a, "value_levels"_a,
          nb::kw_only(), "key_decode_levels"_a.none() = nb::none(), "value_decode_levels"_a.none() = nb::none(),
          "outliers"_a = 0.01, "sinks"_a = 1, "int8_levels"_a = true, "keys"_a = "pre_rope", "weights"_a = "fisher",
          "origin"_a = provenance{},
          nb::sig("def from_codebooks(shape: Shape, bits: int, key_ranges: Array, key_levels: Array, "
                  "value_levels: Array, *, key_decode_levels: Array | None = None, "
                  "value_decode_levels: Array | None = None, outliers: float | tuple[float, float] = 0.01, "
                  "sinks: int = 1, int8_levels: bool = True, keys: str = 'pre_rope', weights: str = 'fisher', "
                  "origin: Origin = ...) -> Artifact"),
          "A `nuq` artifact from codebooks that were fitted elsewhere. key_ranges [layers, kv_channels, 2]: lower and "
          "upper bound of each key channel, which -1 and 1 stand for. key_levels, value_levels [layers, 2**bits]: "
          "rising, what a normalised value is compared with; *_decode_levels: what its code reads as where that "
          "differs (Q-Norm). outliers: the fraction of values kept sparse, of keys and of values. int8_levels: round "
          "what codes read as so that integers hold it.")
      .def(
          "save",
          [](any_artifact& it, std::filesystem::path const& path) {
            nb::gil_scoped_release const released;
            save(it, path);
          },
          "path"_a, "Writes the artifact; the file appears whole or not at all.");
}

void bind_facts(nb::class_<any_artifact>& artifact) {
  artifact
      .def_prop_ro(
          "spec", [](any_artifact const& it) { return it.info.spec; }, "\"nuq3\", \"adaptive\", \"f16\"")
      .def_prop_ro(
          "label", [](any_artifact const& it) { return label_of(it.info); },
          "\"nuq3-1%\", with what differs from the defaults.")
      .def_prop_ro("shape", [](any_artifact const& it) { return it.info.shape; })
      .def_prop_ro("origin", [](any_artifact const& it) { return it.info.origin; })
      .def_prop_ro(
          "hash", [](any_artifact const& it) { return it.info.hash; },
          "Of the file's content; empty until saved or loaded.")
      .def_prop_ro(
          "sinks", [](any_artifact const& it) { return it.info.sinks; }, "First tokens that stay exact.")
      .def_prop_ro(
          "keys", [](any_artifact const& it) { return std::string(to_string(it.info.keys)); },
          "Where keys are quantized: \"pre_rope\" or \"post_rope\".")
      .def_prop_ro(
          "weights", [](any_artifact const& it) { return std::string(to_string(it.info.weights)); },
          "By what a value counted in the fit.")
      .def_prop_ro("q_norm", [](any_artifact const& it) { return it.info.q_norm; })
      .def_prop_ro(
          "outliers",
          [](any_artifact const& it) { return std::pair(it.info.outlier_fraction_k, it.info.outlier_fraction_v); },
          "Fractions of keys and of values that are kept sparse.")
      .def_prop_ro(
          "bits", [](any_artifact const& it) { return bits_per_element(it.info); },
          "Bits of an element of a whole page: codes, ranges, slots and padding.")
      .def_prop_ro(
          "code_bits", [](any_artifact const& it) { return code_bits(it.info); },
          "Bits of a key's and of a value's code alone.")
      .def("__repr__", [](any_artifact const& it) {
        return text("<kvquant.Artifact ", label_of(it.info), ", ", it.info.shape.layers, " layers x ",
                    it.info.shape.kv_heads, " KV heads x ", it.info.shape.head_dim, ">");
      });
}

}  // namespace

void bind_artifact(nb::module_& module) {
  nb::class_<any_artifact> artifact(module, "Artifact",
                                    "All that a cache needs to know to store one model's keys and values.");
  bind_making(artifact);
  bind_facts(artifact);
  artifact
      .def(
          "supports", [](any_artifact const& it, std::string const& name) { return bool{supports(name, it.info)}; },
          "backend"_a, "Whether that backend can have caches of it.")
      .def(
          "missing", [](any_artifact const& it, std::string const& name) { return supports(name, it.info).missing; },
          "backend"_a, "What that backend lacks for it; empty if nothing.")
      .def(
          "require_made_for",
          [](any_artifact const& it, std::string const& name, std::string const& hash, model_shape const& shape) {
            require_made_for(it.info, name, hash, shape);
          },
          "model_name"_a, "model_hash"_a, "shape"_a, "Raises Error unless it was made for that model.")
      .def(
          "key_ranges",
          [](any_artifact const& it, int layer) { return ranges_to_numpy(layer_of(it, layer).key_ranges); }, "layer"_a,
          nb::sig("def key_ranges(self, layer: int) -> NDArray[numpy.float32]"),
          "[kv_channels, 2]: lower and upper bound of each key channel.")
      .def("levels", &levels_of, "layer"_a, "side"_a, "encode"_a = false,
           nb::sig("def levels(self, layer: int, side: str, encode: bool = False) -> NDArray[numpy.float32]"),
           "[2**bits]: what the codes of side \"key\" or \"value\" read as, in [-1, 1] of their range; with encode, "
           "what "
           "values are compared with. Empty where levels are part of the format or channels have their own.")
      .def("sensitivity", &sensitivity_of, "layer"_a, "side"_a,
           nb::sig("def sensitivity(self, layer: int, side: str) -> NDArray[numpy.float32]"),
           "[kv_channels]: squared gradients, summed over the calibration tokens.")
      .def("widths", &widths_of, "layer"_a, "side"_a,
           nb::sig("def widths(self, layer: int, side: str) -> NDArray[numpy.uint8]"),
           "[kv_channels]: bits of each channel's codes, of `adaptive`; empty for others.")
      .def("round_trip", &round_trip, "layer"_a, "k"_a, "v"_a,
           nb::sig("def round_trip(self, layer: int, k: Array, v: Array) -> tuple[NDArray[numpy.float32], "
                   "NDArray[numpy.float32]]"),
           "What keys and values of a layer, [tokens, kv_heads, head_dim] or [tokens, kv_channels], read as when each "
           "token is quantized by itself and every outlier is kept; no token is exact. A cache keeps sinks and latest "
           "tokens exact, and as many outliers as a page has room for: see Sequence.read.");
}

}  // namespace kvquant::python
