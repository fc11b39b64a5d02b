#pragma once
/// \file
/// The result of a calibration: all that a cache needs to know to store one model's keys and values.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/calibrate/statistics.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/quantize/q_norm.hpp"
#include "kvquant/quantize/sides.hpp"
#include "kvquant/quantize/spec.hpp"

namespace kvquant {

/// The `text_hash` of calibrations on what the model wrote itself, from the seed on.
inline constexpr std::string_view own_text = "written by the model";

/// Where an artifact comes from. Hashes are whatever identifies the thing to the runtime; an artifact serves the model
/// of its `model_hash` alone.
struct provenance {
  /// Names and hashes as the runtime gave them; empty: unknown.
  std::string model_name{}, model_hash{}, tokenizer_hash{}, text_hash{};
  int samples = 0;                                ///< windows
  int context = 0;                                ///< tokens per window
  std::uint64_t seed = 0;                         ///< of the windows' starts
  std::string library_version = KVQUANT_VERSION;  ///< that wrote the artifact
};

/// What is the same whatever the datatypes.
struct artifact_info {
  std::string spec;   ///< `Spec::name()`
  model_shape shape;  ///< of the model
  /// Shares of keys and of values that are kept sparse.
  double outlier_fraction_k = 0, outlier_fraction_v = 0;
  int sinks = 0;                              ///< exact tokens at the start of a sequence
  key_space keys = key_space::pre_rope;       ///< where keys are quantized
  fit_weights weights = fit_weights::fisher;  ///< what the codebooks were fitted by
  bool q_norm = false;                        ///< decode levels differ from encode levels
  /// Bits of one token's codes of one head, of formats that are `by_channel`; 0 for others.
  int key_token_bits = 0, value_token_bits = 0;
  bool own_levels = false;  ///< of such formats: tables do not serve eights of a head's channels
  provenance origin;        ///< of the calibration
  std::string hash;         ///< of the file's content; empty until saved or loaded
};

/// The codebook of one side of one layer, and how well it fits the calibration values.
struct codebook {
  std::vector<float> levels;         ///< [2^bits], rising: what a value is compared with; empty for fixed formats
  std::vector<float> decode_levels;  ///< [2^bits]: what a code reads as
  q_norm norm;                       ///< decode = norm(level)
  double objective = 0;              ///< Σ w (x' − decode)² over calibration, by the artifact's weights
  double mass = 0;                   ///< Σ w
  double outlier_rate = 0;           ///< of the calibration values
};

/// What each channel of one side of one layer has, in formats that are `by_channel`. Empty for others.
struct channel_codes {
  std::vector<std::uint8_t> widths;        ///< [kv_channels] bits of a channel's codes
  std::vector<value_range> maps;           ///< [kv_channels] what is taken to [−1, 1], where levels are
  std::vector<value_range> seen;           ///< [kv_channels] from the least to the greatest value of the calibration
  std::vector<std::vector<float>> levels;  ///< tables of 2^width levels, rising
  std::vector<std::uint16_t> table_of;     ///< [kv_channels] which of them a channel has
};

/// Whether some table serves fewer than eight channels of a head, or a number that eights do not make up.
inline bool has_own_levels(channel_codes const& codes, std::size_t head_dim) {
  for (std::size_t first = 0; first < codes.table_of.size(); first += head_dim) {
    std::vector<std::size_t> channels_of(codes.levels.size());
    for (std::size_t channel = first; channel < first + head_dim; ++channel)
      ++channels_of.at(codes.table_of.at(channel));
    for (std::size_t const channels : channels_of)
      if (channels % 8 != 0) return true;
  }
  return false;
}

/// What one layer's tokens are quantized with.
struct layer_artifact {
  std::vector<value_range> key_ranges;                    ///< [kv_channels]
  codebook key, value;                                    ///< of formats with one table for all channels
  std::vector<float> key_sensitivity, value_sensitivity;  ///< [kv_channels] Σ over calibration tokens of F
  channel_codes key_channels{}, value_channels{};         ///< of formats that are `by_channel`
};

/// The table of format `F` that `book` describes.
template <Format F>
typename F::table table_of(codebook const& book) {
  if constexpr (F::fitted)
    return F::make_table(book.levels, book.decode_levels);
  else
    return F::default_table();
}

/// The same of every channel. Throws `bad_shape` or `bad_value` for levels that are not those of the channel's width.
template <Format F>
  requires is_by_channel<F> channel_tables<F> tables_of(channel_codes const& codes) {
    std::size_t const channels = codes.widths.size();
    require(codes.maps.size() == channels && codes.seen.size() == channels && codes.table_of.size() == channels,
            errc::bad_shape, F::name, ": ", codes.maps.size(), " and ", codes.seen.size(), " ranges and ",
            codes.table_of.size(), " tables of ", channels, " channels");
    for (std::size_t channel = 0; channel < channels; ++channel) {
      std::size_t const table = codes.table_of[channel];
      require(table < codes.levels.size() && codes.widths[channel] <= F::bits &&
                  codes.levels[table].size() == std::size_t{1} << codes.widths[channel],
              errc::bad_value, F::name, ": channel ", channel, " of ", int{codes.widths[channel]}, " bits has table ",
              table, " of ", codes.levels.size(), ", expected 1 to ", F::bits, " bits and a table of as many");
    }
    channel_tables<F> all{{}, codes.table_of};
    for (auto const& levels : codes.levels) all.tables.push_back(F::make_table(levels, levels));
    return all;
  }

/// All that quantizes the tokens of one model: made by `fit`, written by `save`, read by `load_artifact`.
template <Spec S>
struct artifact {
  ///@{
  /// Format of a side.
  using key_format = typename S::key_format;
  using value_format = typename S::value_format;
  ///@}

  artifact_info info;                  ///< what is the same for all layers
  std::vector<layer_artifact> layers;  ///< [info.shape.layers]

  /// The quantizer of a layer's keys. Throws `std::out_of_range`, and `bad_shape` or `bad_value` for tables that cannot
  /// be.
  key_side<key_format> keys(int layer) const {
    auto const& it = layers.at(static_cast<std::size_t>(layer));
    if constexpr (is_by_channel<key_format>)
      return {it.key_channels.maps, tables_of<key_format>(it.key_channels), false};
    else
      return {it.key_ranges, table_of<key_format>(it.key), info.outlier_fraction_k > 0};
  }
  /// The quantizer of a layer's values; throws likewise.
  value_side<value_format> values(int layer) const {
    auto const& it = layers.at(static_cast<std::size_t>(layer));
    if constexpr (is_by_channel<value_format>)
      return {it.value_channels.maps, tables_of<value_format>(it.value_channels), false, "values"};
    else
      return {it.key_ranges.size(), table_of<value_format>(it.value), info.outlier_fraction_v};
  }
};

/// Throws `bad_format` naming both models unless the artifact was made for the model of that hash and shape.
inline void require_made_for(artifact_info const& info, std::string const& model_name, std::string const& model_hash,
                             model_shape const& shape) {
  bool const same_shape = info.shape.layers == shape.layers && info.shape.kv_heads == shape.kv_heads &&
                          info.shape.head_dim == shape.head_dim && info.shape.local.layers == shape.local.layers &&
                          info.shape.local.window == shape.local.window;
  auto const describe = [](std::string const& name, model_shape const& it, std::string const& hash) {
    std::string local;
    if (!it.local.layers.empty())
      local = text(it.local.layers.size(), " of them with a window of ", it.local.window, " tokens, ");
    return text('"', name, "\" (", it.layers, " layers, ", local, it.kv_heads, " KV heads x ", it.head_dim, ", hash ",
                hash, ")");
  };
  require(info.origin.model_hash == model_hash && same_shape, errc::bad_format, "the artifact was made for ",
          describe(info.origin.model_name, info.shape, info.origin.model_hash), ", the model is ",
          describe(model_name, shape, model_hash));
}

}  // namespace kvquant
