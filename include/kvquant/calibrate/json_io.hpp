#pragma once
/// \file
/// The plain structs of calibration as JSON. Names are part of the file formats (docs/artifact_format.md).

#include <array>
#include <concepts>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/error.hpp"

namespace kvquant {

namespace detail {

/// An enumerator by its place in `names`.
template <class Enum, std::size_t N>
Enum enum_from(nlohmann::json const& value, std::array<std::string_view, N> const& names, char const* what) {
  auto const name = value.get<std::string>();
  for (std::size_t i = 0; i < N; ++i)
    if (names[i] == name) return static_cast<Enum>(i);
  throw error{errc::bad_file, text("unknown ", what, " \"", name, "\"")};
}

/// A member that is a whole number within the range of `T`; JSON's own conversion would cut others to fit.
template <std::integral T>
void get_whole(nlohmann::json const& in, char const* name, T& out) {
  nlohmann::json const& value = in.at(name);
  bool const fits = value.is_number_unsigned()
                        ? std::in_range<T>(value.get<std::uint64_t>())
                        : value.is_number_integer() && std::in_range<T>(value.get<std::int64_t>());
  require(fits, errc::bad_file, "the description has \"", name, "\": ", value, ", expected a whole number that fits");
  out = value.get<T>();
}

inline constexpr std::array<std::string_view, 2> pairing_names = {"half_split", "interleaved"};
inline constexpr std::array<std::string_view, 5> scaling_names = {"none", "linear", "ntk", "llama3", "yarn"};
inline constexpr std::array<std::string_view, 2> key_space_names = {"pre_rope", "post_rope"};
inline constexpr std::array<std::string_view, 4> weight_names = {"fisher", "fisher-unscaled", "activation", "none"};

}  // namespace detail

///@{
/// As files spell it.
inline std::string_view to_string(key_space keys) { return detail::key_space_names[static_cast<std::size_t>(keys)]; }
inline std::string_view to_string(rope_pairing pairing) {
  return detail::pairing_names[static_cast<std::size_t>(pairing)];
}
inline std::string_view to_string(rope_scaling scaling) {
  return detail::scaling_names[static_cast<std::size_t>(scaling)];
}
///@}

///@{
/// JSON as docs/artifact_format.md describes it; `from_json` throws `nlohmann::json::exception` or `kvquant::error`.
inline void to_json(nlohmann::json& out, rope_config const& rope) {
  out = {{"enabled", rope.enabled},
         {"pairing", to_string(rope.pairing)},
         {"theta", rope.theta},
         {"rotary_dim", rope.rotary_dim},
         {"scaling", to_string(rope.scaling)},
         {"factor", rope.factor},
         {"original_context", rope.original_context},
         {"low_frequency_factor", rope.low_frequency_factor},
         {"high_frequency_factor", rope.high_frequency_factor},
         {"beta_fast", rope.beta_fast},
         {"beta_slow", rope.beta_slow},
         {"attention_factor", rope.attention_factor},
         {"frequency_factors", rope.frequency_factors}};
}
inline void from_json(nlohmann::json const& in, rope_config& rope) {
  in.at("enabled").get_to(rope.enabled);
  rope.pairing = detail::enum_from<rope_pairing>(in.at("pairing"), detail::pairing_names, "rope pairing");
  in.at("theta").get_to(rope.theta);
  detail::get_whole(in, "rotary_dim", rope.rotary_dim);
  rope.scaling = detail::enum_from<rope_scaling>(in.at("scaling"), detail::scaling_names, "rope scaling");
  in.at("factor").get_to(rope.factor);
  detail::get_whole(in, "original_context", rope.original_context);
  in.at("low_frequency_factor").get_to(rope.low_frequency_factor);
  in.at("high_frequency_factor").get_to(rope.high_frequency_factor);
  in.at("beta_fast").get_to(rope.beta_fast);
  in.at("beta_slow").get_to(rope.beta_slow);
  in.at("attention_factor").get_to(rope.attention_factor);
  in.at("frequency_factors").get_to(rope.frequency_factors);
}

inline void to_json(nlohmann::json& out, local_layers const& local) {
  out = {{"layers", local.layers}, {"window", local.window}, {"rope", local.rope}};
}
inline void from_json(nlohmann::json const& in, local_layers& local) {
  for (nlohmann::json const& layer : in.at("layers")) {
    require(layer.is_number_unsigned() && std::in_range<int>(layer.get<std::uint64_t>()), errc::bad_file,
            "the description has the local layer ", layer, ", expected whole numbers that fit");
    local.layers.push_back(layer.get<int>());
  }
  detail::get_whole(in, "window", local.window);
  in.at("rope").get_to(local.rope);
}

/// Where no layer is local nothing is said of them.
inline void to_json(nlohmann::json& out, model_shape const& shape) {
  out = {{"layers", shape.layers},
         {"q_heads", shape.q_heads},
         {"kv_heads", shape.kv_heads},
         {"head_dim", shape.head_dim},
         {"rope", shape.rope}};
  if (!shape.local.layers.empty()) out["local"] = shape.local;
}
inline void from_json(nlohmann::json const& in, model_shape& shape) {
  detail::get_whole(in, "layers", shape.layers);
  detail::get_whole(in, "q_heads", shape.q_heads);
  detail::get_whole(in, "kv_heads", shape.kv_heads);
  detail::get_whole(in, "head_dim", shape.head_dim);
  in.at("rope").get_to(shape.rope);
  if (in.contains("local")) in.at("local").get_to(shape.local);
}

inline void to_json(nlohmann::json& out, provenance const& origin) {
  out = {{"model_name", origin.model_name},
         {"model_hash", origin.model_hash},
         {"tokenizer_hash", origin.tokenizer_hash},
         {"text_hash", origin.text_hash},
         {"samples", origin.samples},
         {"context", origin.context},
         {"seed", origin.seed},
         {"library_version", origin.library_version}};
}
inline void from_json(nlohmann::json const& in, provenance& origin) {
  in.at("model_name").get_to(origin.model_name);
  in.at("model_hash").get_to(origin.model_hash);
  in.at("tokenizer_hash").get_to(origin.tokenizer_hash);
  in.at("text_hash").get_to(origin.text_hash);
  detail::get_whole(in, "samples", origin.samples);
  detail::get_whole(in, "context", origin.context);
  detail::get_whole(in, "seed", origin.seed);
  in.at("library_version").get_to(origin.library_version);
}

inline void to_json(nlohmann::json& out, calibration_options const& options) {
  out = {{"layers", options.layers},
         {"kv_channels", options.kv_channels},
         {"outlier_fraction_k", options.outlier_fraction_k},
         {"outlier_fraction_v", options.outlier_fraction_v},
         {"sinks", options.sinks},
         {"max_tokens", options.max_tokens},
         {"bins", options.bins}};
  if (options.channel_bins > 0) out["channel_bins"] = options.channel_bins;
}
inline void from_json(nlohmann::json const& in, calibration_options& options) {
  detail::get_whole(in, "layers", options.layers);
  detail::get_whole(in, "kv_channels", options.kv_channels);
  in.at("outlier_fraction_k").get_to(options.outlier_fraction_k);
  in.at("outlier_fraction_v").get_to(options.outlier_fraction_v);
  detail::get_whole(in, "sinks", options.sinks);
  detail::get_whole(in, "max_tokens", options.max_tokens);
  detail::get_whole(in, "bins", options.bins);
  if (in.contains("channel_bins")) detail::get_whole(in, "channel_bins", options.channel_bins);
}

inline void to_json(nlohmann::json& out, artifact_info const& info) {
  out = {{"spec", info.spec},
         {"shape", info.shape},
         {"outlier_fraction_k", info.outlier_fraction_k},
         {"outlier_fraction_v", info.outlier_fraction_v},
         {"sinks", info.sinks},
         {"keys", to_string(info.keys)},
         {"weights", to_string(info.weights)},
         {"q_norm", info.q_norm},
         {"origin", info.origin}};
  if (info.key_token_bits > 0) out["key_token_bits"] = info.key_token_bits;
  if (info.value_token_bits > 0) out["value_token_bits"] = info.value_token_bits;
  if (info.own_levels) out["own_levels"] = true;
}
inline void from_json(nlohmann::json const& in, artifact_info& info) {
  in.at("spec").get_to(info.spec);
  in.at("shape").get_to(info.shape);
  in.at("outlier_fraction_k").get_to(info.outlier_fraction_k);
  in.at("outlier_fraction_v").get_to(info.outlier_fraction_v);
  detail::get_whole(in, "sinks", info.sinks);
  info.keys = detail::enum_from<key_space>(in.at("keys"), detail::key_space_names, "key space");
  info.weights = detail::enum_from<fit_weights>(in.at("weights"), detail::weight_names, "weights");
  in.at("q_norm").get_to(info.q_norm);
  in.at("origin").get_to(info.origin);
  if (in.contains("key_token_bits")) detail::get_whole(in, "key_token_bits", info.key_token_bits);
  if (in.contains("value_token_bits")) detail::get_whole(in, "value_token_bits", info.value_token_bits);
  info.own_levels = in.value("own_levels", false);
}

/// What a codebook's tensors do not hold.
inline void to_json(nlohmann::json& out, codebook const& book) {
  out = {{"q_norm", {book.norm.scale, book.norm.offset}},
         {"objective", book.objective},
         {"mass", book.mass},
         {"outlier_rate", book.outlier_rate}};
}
inline void from_json(nlohmann::json const& in, codebook& book) {
  in.at("q_norm").at(0).get_to(book.norm.scale);
  in.at("q_norm").at(1).get_to(book.norm.offset);
  in.at("objective").get_to(book.objective);
  in.at("mass").get_to(book.mass);
  in.at("outlier_rate").get_to(book.outlier_rate);
}
///@}

}  // namespace kvquant
