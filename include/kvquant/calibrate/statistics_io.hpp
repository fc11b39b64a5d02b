#pragma once
/// \file
/// Calibration statistics as files: kept to fit again without the model, and to merge what several machines saw.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/calibrate/calibrator.hpp"

namespace kvquant {

/// The `kind` in the metadata of statistics.
inline constexpr std::string_view statistics_kind = "kvquant-statistics";

/// A calibrator's state together with what a fit needs to know of the model.
struct saved_statistics {
  calibrator statistics;                 ///< ranges frozen: ready to be merged or fitted
  model_shape shape;                     ///< of the model
  key_space keys = key_space::pre_rope;  ///< where keys were observed
  provenance origin;                     ///< of the calibration
};

/// Of what they are statistics.
inline std::string subject_of(key_space keys, std::string const& model_name, std::string const& model_hash) {
  return text(to_string(keys), " keys of \"", model_name, "\" (", model_hash, ")");
}
/// The same.
inline std::string subject_of(saved_statistics const& it) {
  return subject_of(it.keys, it.origin.model_name, it.origin.model_hash);
}

/// Adds what `other` has seen: its windows too, once ranges are frozen. Throws `bad_format` for statistics of another
/// model, or of keys taken elsewhere, and what `calibrator::merge` throws.
inline void merge(saved_statistics& to, saved_statistics const& other) {
  require(other.origin.model_hash == to.origin.model_hash && other.keys == to.keys, errc::bad_format, "statistics of ",
          subject_of(other), ", expected those of ", subject_of(to));
  to.statistics.merge(other.statistics);
  if (!to.statistics.ranges_frozen()) return;
  to.origin.samples += other.origin.samples;
  to.origin.text_hash += "+" + other.origin.text_hash;
}

namespace detail {

struct statistics_members {
  std::string name;
  side_statistics layer_statistics::*side;
};
inline std::array<statistics_members, 2> both_statistics() {
  return {{{"key", &layer_statistics::key}, {"value", &layer_statistics::value}}};
}

/// `flat`: mass, first and second moment of each bin.
inline void get_bins(std::string const& tensor, std::span<double const> flat, histogram& to) {
  for (std::size_t i = 0; i < flat.size(); i += 3) {
    for (double const x : flat.subspan(i, 3))
      require(std::isfinite(x), errc::bad_file, "tensor \"", tensor, "\" holds ", x, ", expected finite values");
    require(flat[i] >= 0, errc::bad_file, "tensor \"", tensor, "\" holds a negative mass");
    to.bins()[i / 3] = {flat[i], flat[i + 1], flat[i + 2]};
  }
}

/// "<side>.channel_ranges" (binary16, lower and upper in turn), "<side>.channels" [layers, channels, bins, 3].
inline void add_channel_statistics(safetensors_writer& file, statistics_members const& it,
                                   std::vector<layer_statistics> const& layers) {
  std::size_t const channels = (layers.front().*it.side).channels.size();
  if (channels == 0) return;
  std::vector<value_range> ranges;
  std::vector<double> flat;
  for (layer_statistics const& layer : layers)
    for (channel_statistics const& channel : (layer.*it.side).channels) {
      ranges.push_back(channel.range);
      for (moments const& bin : channel.values.bins()) flat.insert(flat.end(), {bin.mass, bin.first, bin.second});
    }
  file.add<half>(it.name + ".channel_ranges", {layers.size(), channels, 2}, flatten(ranges));
  file.add<double>(it.name + ".channels", {layers.size(), channels, flat.size() / ranges.size() / 3, 3}, flat);
}

inline void get_channel_statistics(safetensors_file const& file, statistics_members const& it,
                                   calibration_options const& options, std::vector<layer_statistics>& layers) {
  if (options.channel_bins == 0) return;
  auto const channels = static_cast<std::size_t>(options.kv_channels);
  auto const ranges =
      unflatten(file.get<half>(it.name + ".channel_ranges", {layers.size(), channels, 2}), "range of channel ");
  std::string const name = it.name + ".channels";
  auto const flat = file.get<double>(name, {layers.size(), channels, options.channel_bins, 3});
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    channel_statistics& channel = (layers[i / channels].*it.side).channels[i % channels];
    channel.range = ranges[i];
    get_bins(name, {flat.data() + i * 3 * options.channel_bins, 3 * options.channel_bins}, channel.values);
  }
}

inline void add_statistics(safetensors_writer& file, statistics_members const& it,
                           std::vector<layer_statistics> const& layers) {
  for (fit_weights const weights : all_fit_weights) {
    std::vector<double> flat;
    for (layer_statistics const& layer : layers)
      for (moments const& bin : (layer.*it.side).of(weights).bins())
        flat.insert(flat.end(), {bin.mass, bin.first, bin.second});
    file.add<double>(it.name + "." + std::string(to_string(weights)),
                     {layers.size(), flat.size() / layers.size() / 3, 3}, flat);
  }
  std::size_t const channels = (layers.front().*it.side).sensitivity.size();
  add_stacked<double>(
      file, it.name + ".sensitivity", layers.size(),
      channels, [&](std::size_t layer) -> auto& { return (layers[layer].*it.side).sensitivity; });
  std::vector<std::uint64_t> counts;
  for (layer_statistics const& layer : layers)
    counts.insert(counts.end(), {(layer.*it.side).values, (layer.*it.side).outliers});
  file.add<std::uint64_t>(it.name + ".counts", {layers.size(), 2}, counts);
  add_channel_statistics(file, it, layers);
}

inline void get_statistics(safetensors_file const& file, statistics_members const& it,
                           calibration_options const& options, std::vector<layer_statistics>& layers) {
  for (fit_weights const weights : all_fit_weights) {
    std::string const name = it.name + "." + std::string(to_string(weights));
    auto const flat = file.get<double>(name, {layers.size(), options.bins, 3});
    for (std::size_t layer = 0; layer < layers.size(); ++layer)
      get_bins(name, {flat.data() + layer * 3 * options.bins, 3 * options.bins}, (layers[layer].*it.side).of(weights));
  }
  auto sensitivity = get_sensitivity<double>(file, it.name + ".sensitivity", layers.size(),
                                             static_cast<std::size_t>(options.kv_channels));
  auto const counts = file.get<std::uint64_t>(it.name + ".counts", {layers.size(), 2});
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    side_statistics& side = layers[layer].*it.side;
    side.sensitivity = std::move(sensitivity[layer]);
    side.values = counts[2 * layer];
    side.outliers = counts[2 * layer + 1];
    require(side.outliers <= side.values, errc::bad_file, "tensor \"", it.name, ".counts\" has ", side.outliers,
            " outliers of ", side.values, " values");
  }
  get_channel_statistics(file, it, options, layers);
}

inline void require_same_size(model_shape const& shape, calibration_options const& options) {
  validate(shape);
  require(shape.layers == options.layers && shape.kv_channels() == options.kv_channels, errc::bad_shape,
          "statistics of ", options.layers, " layers x ", options.kv_channels, " channels, for a model of ",
          shape.layers, " x ", shape.kv_channels());
}

}  // namespace detail

/// Writes statistics whose ranges are frozen; the file appears whole or not at all.
inline void save(saved_statistics const& it, std::filesystem::path const& path) {
  require(it.statistics.ranges_frozen(), errc::bad_value, "statistics: the key ranges are not frozen");
  detail::require_same_size(it.shape, it.statistics.options());
  auto file = detail::begin_container(statistics_kind, it.shape);
  auto const& layers = it.statistics.layers();
  detail::add_ranges(file, layers);
  for (auto const& side : detail::both_statistics()) detail::add_statistics(file, side, layers);
  detail::finish_container(
      file,
      {{"options", it.statistics.options()}, {"shape", it.shape}, {"keys", to_string(it.keys)}, {"origin", it.origin}});
  file.write(path);
}

/// The statistics of a file. Throws `bad_file` for what is none.
inline saved_statistics read_statistics(safetensors_file const& file) {
  return detail::reading(file.origin(), [&] {
    auto const description = detail::open_container(file, statistics_kind);
    auto const options = description.at("options").get<calibration_options>();
    validate(options);
    auto const channels = static_cast<std::size_t>(options.kv_channels);
    auto const layer_count = static_cast<std::size_t>(options.layers);
    auto const bytes_needed =
        8 * layer_count * detail::tensor_bytes(std::array{options.bins}, sizeof(moments), SIZE_MAX);
    require(bytes_needed <= file.data().size(), errc::bad_file, "histograms of ", layer_count, " layers x ",
            options.bins, " bins do not fit in ", file.data().size(), " bytes");
    require(detail::tensor_bytes(std::array{2 * layer_count, channels, options.channel_bins}, sizeof(moments),
                                 SIZE_MAX) <= file.data().size(),
            errc::bad_file, "histograms of ", channels, " channels x ", options.channel_bins, " bins do not fit in ",
            file.data().size(), " bytes");
    std::vector<layer_statistics> layers;
    for (auto& ranges : detail::get_ranges(file, layer_count, channels))
      layers.push_back({std::move(ranges), side_statistics(channels, options.bins, options.channel_bins),
                        side_statistics(channels, options.bins, options.channel_bins)});
    for (auto const& side : detail::both_statistics()) detail::get_statistics(file, side, options, layers);
    saved_statistics it{calibrator(options, std::move(layers)), description.at("shape").get<model_shape>(),
                        detail::enum_from<key_space>(description.at("keys"), detail::key_space_names, "key space"),
                        description.at("origin").get<provenance>()};
    detail::require_same_size(it.shape, options);
    return it;
  });
}

/// The same by path.
inline saved_statistics load_statistics(std::filesystem::path const& path) {
  return read_statistics(safetensors_file::read(path));
}

}  // namespace kvquant
