#include <cstdint>

#include "adapters/python/src/bindings.hpp"
#include "kvquant/calibrate/json_io.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant::python {

namespace {

using namespace nb::literals;

bool same(rope_config const& a, rope_config const& b) { return nlohmann::json(a) == nlohmann::json(b); }
bool same(model_shape const& a, model_shape const& b) { return nlohmann::json(a) == nlohmann::json(b); }

/// `factor`: what each angle's sine is turned by, 1 forward and −1 back.
nb::object rotate(rope_config const& config, nb::handle x, std::int64_t first_position, bool inverse, nb::handle out) {
  nb::ndarray<nb::ro> sizes;
  if (!nb::try_cast(x, sizes) || sizes.ndim() != 3)
    throw nb::value_error("x: expected an array of shape (tokens, heads, head_dim)");
  row_shape const expected{"x", sizes.shape(1), sizes.shape(2)};
  input_rows const from(x, expected);
  output_rows const to(out, {"out", expected.heads, expected.head_dim}, from.rows(), true);
  {
    nb::gil_scoped_release const released;
    rope const turn(config, static_cast<int>(expected.head_dim));
    float const scale = inverse ? static_cast<float>(1 / (turn.attention_factor() * turn.attention_factor())) : 1.0f;
    auto const angles = turn.angle_table(first_position, from.rows());
    for (std::size_t token = 0; token < from.rows(); ++token)
      for (std::size_t head = 0; head < expected.heads; ++head) {
        auto const source = from.view().row(token).subspan(head * expected.head_dim, expected.head_dim);
        auto const target = to.view().row(token).subspan(head * expected.head_dim, expected.head_dim);
        std::copy(source.begin(), source.end(), target.begin());
        auto const rotary = target.first(static_cast<std::size_t>(turn.rotary_dim()));
        if (inverse)
          turn.rotate_back(target, angles[token]);
        else
          turn.rotate(target, angles[token]);
        if (scale != 1)
          for (float& value : rotary) value *= scale;
      }
  }
  return to.python();
}

std::string describe(rope_config const& it) {
  if (!it.enabled) return "Rope(enabled=False)";
  std::string all = text("Rope(pairing='", to_string(it.pairing), "', theta=", it.theta);
  if (it.rotary_dim > 0) all += text(", rotary_dim=", it.rotary_dim);
  if (it.scaling != rope_scaling::none) all += text(", scaling='", to_string(it.scaling), "', factor=", it.factor);
  return all + ")";
}

std::string describe(model_shape const& it) {
  std::string all = text("Shape(layers=", it.layers, ", q_heads=", it.q_heads, ", kv_heads=", it.kv_heads,
                         ", head_dim=", it.head_dim, ", rope=", describe(it.rope));
  if (!it.local.layers.empty()) all += text(", ", it.local.layers.size(), " local layers, window=", it.local.window);
  return all + ")";
}

void bind_rope(nb::module_& module) {
  nb::class_<rope_config> rope(module, "Rope",
                               "Which rotary position embedding a model uses. Angles are position * theta**(-2 i / "
                               "rotary_dim) before scaling, in radians.");
  rope.def(
      "__init__",
      [](rope_config* self, bool enabled, std::string const& pairing, double theta, int rotary_dim,
         std::string const& scaling, double factor, int original_context, double low, double high, double beta_fast,
         double beta_slow, double attention_factor, std::vector<float> frequency_factors) {
        new (self) rope_config{enabled,
                               enum_named<rope_pairing>(pairing, detail::pairing_names, "pairing"),
                               theta,
                               rotary_dim,
                               enum_named<rope_scaling>(scaling, detail::scaling_names, "scaling"),
                               factor,
                               original_context,
                               low,
                               high,
                               beta_fast,
                               beta_slow,
                               attention_factor,
                               std::move(frequency_factors)};
      },
      nb::kw_only(), "enabled"_a = true, "pairing"_a = "half_split", "theta"_a = 10000.0, "rotary_dim"_a = 0,
      "scaling"_a = "none", "factor"_a = 1.0, "original_context"_a = 0, "low_frequency_factor"_a = 1.0,
      "high_frequency_factor"_a = 4.0, "beta_fast"_a = 32.0, "beta_slow"_a = 1.0, "attention_factor"_a = 0.0,
      "frequency_factors"_a = std::vector<float>(),
      "enabled: False for a model without rotation. pairing: \"half_split\" (Hugging Face) or \"interleaved\" (GGUF's "
      "llama). rotary_dim: channels of a head that are rotated, 0 for all. scaling: \"none\", \"linear\", \"ntk\", "
      "\"llama3\" or \"yarn\"; factor, original_context (tokens) and the rest as that scaling has them. "
      "frequency_factors: [rotary_dim / 2], which divide the frequencies, or none.");
  rope.def_ro("enabled", &rope_config::enabled)
      .def_prop_ro("pairing", [](rope_config const& it) { return std::string(to_string(it.pairing)); })
      .def_ro("theta", &rope_config::theta)
      .def_ro("rotary_dim", &rope_config::rotary_dim)
      .def_prop_ro("scaling", [](rope_config const& it) { return std::string(to_string(it.scaling)); })
      .def_ro("factor", &rope_config::factor)
      .def_ro("original_context", &rope_config::original_context)
      .def_ro("low_frequency_factor", &rope_config::low_frequency_factor)
      .def_ro("high_frequency_factor", &rope_config::high_frequency_factor)
      .def_ro("beta_fast", &rope_config::beta_fast)
      .def_ro("beta_slow", &rope_config::beta_slow)
      .def_ro("attention_factor", &rope_config::attention_factor)
      .def_ro("frequency_factors", &rope_config::frequency_factors)
      .def(
          "rotate", &rotate, "x"_a, "first_position"_a = 0, nb::kw_only(), "inverse"_a = false,
          "out"_a.none() = nb::none(),
          nb::sig("def rotate(self, x: Array, first_position: int = 0, *, inverse: bool = False, "
                  "out: NDArray[numpy.float32] | None = None) -> NDArray[numpy.float32]"),
          "x [tokens, heads, head_dim], turned to positions from first_position on; with inverse, from after RoPE back "
          "to before it. float32 of the same shape, or out.")
      .def(
          "__eq__", [](rope_config const& a, rope_config const& b) { return same(a, b); }, nb::is_operator(),
          nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__repr__", [](rope_config const& it) { return describe(it); });
}

void bind_model_shape(nb::module_& module) {
  nb::class_<model_shape> shape(module, "Shape", "The sizes of a model that its cache depends on.");
  shape.def(
      "__init__",
      [](model_shape* self, int layers, int q_heads, int kv_heads, int head_dim, std::optional<rope_config> const& rope,
         std::vector<int> local_layers, int window, std::optional<rope_config> const& local_rope) {
        model_shape made{layers, q_heads, kv_heads, head_dim, rope.value_or(rope_config{}), {}};
        made.local = {std::move(local_layers), window, local_rope.value_or(made.rope)};
        validate(made);
        kvquant::rope(made.rope, head_dim);
        if (!made.local.layers.empty()) kvquant::rope(made.local.rope, head_dim);
        new (self) model_shape(std::move(made));
      },
      "layers"_a, "q_heads"_a, "kv_heads"_a, "head_dim"_a, "rope"_a = nb::none(), nb::kw_only(),
      "local_layers"_a = std::vector<int>(), "window"_a = 0, "local_rope"_a = nb::none(),
      "head_dim: channels of a head. rope: of the layers that see all tokens; Rope() if not given. local_layers: which "
      "layers see the latest `window` tokens alone, rising, with the rotation local_rope (rope if not given).");
  shape.def_ro("layers", &model_shape::layers)
      .def_ro("q_heads", &model_shape::q_heads)
      .def_ro("kv_heads", &model_shape::kv_heads)
      .def_ro("head_dim", &model_shape::head_dim, "Channels of a head.")
      .def_prop_ro("kv_channels", &model_shape::kv_channels, "kv_heads * head_dim")
      .def_ro("rope", &model_shape::rope)
      .def_prop_ro("local_layers", [](model_shape const& it) { return it.local.layers; })
      .def_prop_ro(
          "window", [](model_shape const& it) { return it.local.window; }, "Tokens.")
      .def_prop_ro("local_rope", [](model_shape const& it) { return it.local.rope; })
      .def("rope_of", &model_shape::rope_of, "layer"_a, "The rotation of a layer.")
      .def(
          "__eq__", [](model_shape const& a, model_shape const& b) { return same(a, b); }, nb::is_operator(),
          nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__repr__", [](model_shape const& it) { return describe(it); });
}

void bind_origin(nb::module_& module) {
  nb::class_<provenance> origin(module, "Origin",
                                "Where an artifact comes from. Hashes are whatever identifies the thing to you; an "
                                "artifact serves the model of its model_hash alone.");
  origin.def(
      "__init__",
      [](provenance* self, std::string model_name, std::string model_hash, std::string tokenizer_hash,
         std::string text_hash, int samples, int context, std::uint64_t seed) {
        new (self) provenance{std::move(model_name),
                              std::move(model_hash),
                              std::move(tokenizer_hash),
                              std::move(text_hash),
                              samples,
                              context,
                              seed};
      },
      nb::kw_only(), "model_name"_a = "", "model_hash"_a = "", "tokenizer_hash"_a = "", "text_hash"_a = "",
      "samples"_a = 0, "context"_a = 0, "seed"_a = 0, "samples: windows. context: tokens of a window.");
  origin.def_ro("model_name", &provenance::model_name)
      .def_ro("model_hash", &provenance::model_hash)
      .def_ro("tokenizer_hash", &provenance::tokenizer_hash)
      .def_ro("text_hash", &provenance::text_hash)
      .def_ro("samples", &provenance::samples, "Windows.")
      .def_ro("context", &provenance::context, "Tokens of a window.")
      .def_ro("seed", &provenance::seed)
      .def_ro("library_version", &provenance::library_version)
      .def("__repr__", [](provenance const& it) {
        return text("Origin(model_name='", it.model_name, "', model_hash='", it.model_hash, "', samples=", it.samples,
                    ", context=", it.context, ")");
      });
}

}  // namespace

void bind_shape(nb::module_& module) {
  bind_rope(module);
  bind_model_shape(module);
  bind_origin(module);
}

}  // namespace kvquant::python
