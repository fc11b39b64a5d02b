#pragma once
/// \file
/// Artifacts as files (docs/artifact_format.md).

#include <bit>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/json_io.hpp"
#include "kvquant/calibrate/safetensors.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/hash.hpp"

namespace kvquant {

/// The `kind` in an artifact's metadata.
inline constexpr std::string_view artifact_kind = "kvquant-artifact";
/// Of files of models without local layers, and with them: who does not know those would read the wrong keys.
inline constexpr std::string_view plain_version = "1", local_version = "2";

namespace detail {

/// Starts a file of that kind. Metadata: what it is, its version, its description, and a hash of description and data.
inline safetensors_writer begin_container(std::string_view kind, model_shape const& shape) {
  std::string_view const version = shape.local.layers.empty() ? plain_version : local_version;
  return safetensors_writer({{"kind", std::string(kind)}, {"version", std::string(version)}});
}

inline std::string content_hash(std::string const& description, std::span<std::byte const> data) {
  fingerprint hash;
  hash.add(std::string_view(description));
  hash.add(data);
  return hash.hex();
}

inline std::string finish_container(safetensors_writer& file, nlohmann::json const& description) {
  // Names that come from elsewhere may not be UTF-8.
  std::string const json = description.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  std::string hash = content_hash(json, file.data());
  file.set_metadata("description", json);
  file.set_metadata("hash", hash);
  return hash;
}

/// Checks kind, version and hash and returns the description.
inline nlohmann::json open_container(safetensors_file const& file, std::string_view kind) {
  auto const found_kind = file.metadata().find("kind");
  require(found_kind != file.metadata().end() && found_kind->second == kind, errc::bad_file, file.origin(), ": not a ",
          kind, " file", found_kind == file.metadata().end() ? "" : " but " + found_kind->second);
  std::string const& version = file.metadata("version");
  require(version == plain_version || version == local_version, errc::bad_file, file.origin(), ": version ", version,
          ", expected ", plain_version, " or ", local_version);
  std::string const& description = file.metadata("description");
  require(content_hash(description, file.data()) == file.metadata("hash"), errc::bad_file, file.origin(),
          ": damaged: the content does not have the hash ", file.metadata("hash"));
  return nlohmann::json::parse(description);
}

/// Runs `f`, turning what JSON complains of into `bad_file`, and putting the file's name before any complaint.
template <class F>
auto reading(std::string const& origin, F&& f) {
  try {
    return f();
  } catch (nlohmann::json::exception const& failure) {
    throw error{errc::bad_file, text(origin, ": the description is not what is expected: ", complaint_of(failure))};
  } catch (error const& failure) {
    std::string const what = failure.what();
    throw error{errc::bad_file, what.starts_with(origin) ? what : text(origin, ": ", what)};
  }
}

/// One member of every layer, as one tensor: get(layer) is a vector of `width` values.
template <class T, class Get>
void add_stacked(safetensors_writer& file, std::string const& name, std::size_t layers, std::size_t width, Get&& get) {
  std::vector<T> all;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    auto&& values = get(layer);
    require(values.size() == width, errc::bad_shape, "\"", name, "\": layer ", layer, " has ", values.size(),
            " values, expected ", width);
    all.insert(all.end(), values.begin(), values.end());
  }
  file.add<T>(name, {layers, width}, all);
}

template <class T>
std::vector<std::vector<T>> get_stacked(safetensors_file const& file, std::string const& name, std::size_t layers,
                                        std::size_t width) {
  std::vector<T> const all = file.get<T>(name, {layers, width});
  std::vector<std::vector<T>> split;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    auto const begin = all.begin() + static_cast<std::ptrdiff_t>(layer * width);
    split.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(width));
  }
  return split;
}

inline std::vector<half> flatten(std::vector<value_range> const& ranges) {
  std::vector<half> flat;
  for (value_range const range : ranges) flat.insert(flat.end(), {range.lower, range.upper});
  return flat;
}
inline std::vector<value_range> unflatten(std::vector<half> const& flat, char const* what = "key range ") {
  std::vector<value_range> ranges;
  for (std::size_t i = 0; i + 1 < flat.size(); i += 2) {
    ranges.push_back({flat[i], flat[i + 1]});
    float const low = ranges.back().low(), high = ranges.back().high();
    require(std::isfinite(low) && std::isfinite(high) && low <= high, errc::bad_file, what, i / 2, " is [", low, ", ",
            high, "], expected finite bounds, lower <= upper");
  }
  return ranges;
}

/// The sensitivity of every layer's channels: sums of squares.
template <class T>
std::vector<std::vector<T>> get_sensitivity(safetensors_file const& file, std::string const& name, std::size_t layers,
                                            std::size_t channels) {
  auto sums = get_stacked<T>(file, name, layers, channels);
  for (auto const& layer : sums)
    for (T const x : layer)
      require(std::isfinite(x) && x >= 0, errc::bad_file, "tensor \"", name, "\" holds ", x,
              ", expected finite values, none negative");
  return sums;
}

/// "key.ranges": binary16 [layers, 2 · channels], lower and upper in turn.
template <class Layer>
void add_ranges(safetensors_writer& file, std::vector<Layer> const& layers) {
  add_stacked<half>(file, "key.ranges", layers.size(), 2 * layers.front().key_ranges.size(),
                    [&](std::size_t layer) { return flatten(layers[layer].key_ranges); });
}
inline std::vector<std::vector<value_range>> get_ranges(safetensors_file const& file, std::size_t layers,
                                                        std::size_t channels) {
  std::vector<std::vector<value_range>> ranges;
  for (auto const& flat : get_stacked<half>(file, "key.ranges", layers, 2 * channels))
    ranges.push_back(unflatten(flat));
  return ranges;
}

/// Levels of a side's one codebook.
template <Format F>
constexpr std::size_t level_count() {
  if constexpr (F::fitted && !is_by_channel<F>)
    return std::size_t{1} << F::bits;
  else
    return 0;
}

/// The members of one side in the file: "<side>.levels", "<side>.decode_levels", "<side>.sensitivity".
struct side_members {
  std::string name;
  codebook layer_artifact::*book;
  std::vector<float> layer_artifact::*sensitivity;
  channel_codes layer_artifact::*channels;
};
inline std::array<side_members, 2> both_sides() {
  return {{{"key", &layer_artifact::key, &layer_artifact::key_sensitivity, &layer_artifact::key_channels},
           {"value", &layer_artifact::value, &layer_artifact::value_sensitivity, &layer_artifact::value_channels}}};
}

/// Of every channel "<side>.widths", "<side>.maps", "<side>.seen" (binary16, lower and upper in turn) and
/// "<side>.table_of"; then "<side>.table_widths" [layers, tables] and "<side>.tables" [layers, tables, 2^F::bits], of
/// which a table has the first 2^width, the last of them repeated.
template <Format F>
void add_channel_codes(safetensors_writer& file, side_members const& side, std::vector<layer_artifact> const& layers) {
  auto const of = [&](std::size_t layer) -> channel_codes const& { return layers[layer].*side.channels; };
  std::size_t const channels = layers.front().key_ranges.size(), tables = of(0).levels.size();
  constexpr std::size_t most = std::size_t{1} << F::bits;
  add_stacked<std::uint8_t>(
      file, side.name + ".widths", layers.size(),
      channels, [&](std::size_t layer) -> auto& { return of(layer).widths; });
  add_stacked<half>(file, side.name + ".maps", layers.size(), 2 * channels,
                    [&](std::size_t layer) { return flatten(of(layer).maps); });
  add_stacked<half>(file, side.name + ".seen", layers.size(), 2 * channels,
                    [&](std::size_t layer) { return flatten(of(layer).seen); });
  add_stacked<std::uint16_t>(
      file, side.name + ".table_of", layers.size(),
      channels, [&](std::size_t layer) -> auto& { return of(layer).table_of; });
  std::vector<std::uint8_t> widths;
  std::vector<float> levels;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    require(of(layer).levels.size() == tables, errc::bad_shape, "\"", side.name, ".tables\": layer ", layer, " has ",
            of(layer).levels.size(), " tables, expected ", tables);
    for (auto const& table : of(layer).levels) {
      require(!table.empty() && table.size() <= most && std::has_single_bit(table.size()), errc::bad_shape, "\"",
              side.name, ".tables\": a table of ", table.size(), " levels, expected a power of 2 up to ", most);
      widths.push_back(static_cast<std::uint8_t>(std::countr_zero(table.size())));
      levels.insert(levels.end(), table.begin(), table.end());
      levels.insert(levels.end(), most - table.size(), table.back());
    }
  }
  file.add<std::uint8_t>(side.name + ".table_widths", {layers.size(), tables}, widths);
  file.add<float>(side.name + ".tables", {layers.size(), tables, most}, levels);
}

template <Format F>
void get_channel_codes(safetensors_file const& file, side_members const& side, std::size_t channels,
                       std::vector<layer_artifact>& layers) {
  constexpr std::size_t most = std::size_t{1} << F::bits;
  std::size_t const tables = file.shape(side.name + ".table_widths").back();
  auto widths = get_stacked<std::uint8_t>(file, side.name + ".widths", layers.size(), channels);
  auto const maps = get_stacked<half>(file, side.name + ".maps", layers.size(), 2 * channels);
  auto const seen = get_stacked<half>(file, side.name + ".seen", layers.size(), 2 * channels);
  auto table_of = get_stacked<std::uint16_t>(file, side.name + ".table_of", layers.size(), channels);
  auto const table_widths = file.get<std::uint8_t>(side.name + ".table_widths", {layers.size(), tables});
  auto const levels = file.get<float>(side.name + ".tables", {layers.size(), tables, most});
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    channel_codes& it = layers[layer].*side.channels;
    it = {std::move(widths[layer]),
          unflatten(maps[layer], "range of channel "),
          unflatten(seen[layer], "range of channel "),
          {},
          std::move(table_of[layer])};
    for (std::size_t table = layer * tables; table < (layer + 1) * tables; ++table) {
      std::size_t const width = table_widths[table];
      require(width >= 1 && width <= F::bits, errc::bad_file, "tensor \"", side.name, ".table_widths\" holds ", width,
              ", expected 1 to ", F::bits);
      auto const first = levels.begin() + static_cast<std::ptrdiff_t>(table * most);
      it.levels.emplace_back(first, first + (std::ptrdiff_t{1} << width));
    }
    static_cast<void>(tables_of<F>(it));  // throws for what cannot be
  }
}

/// The description says what backends have to know before they read the tensors.
inline void require_said(artifact_info const& about, std::vector<layer_artifact> const& layers) {
  auto const head_dim = static_cast<std::size_t>(about.shape.head_dim);
  bool found = false;
  for (layer_artifact const& it : layers)
    found |= has_own_levels(it.key_channels, head_dim) || has_own_levels(it.value_channels, head_dim);
  require(found == about.own_levels, errc::bad_file, "tables ", found ? "serve other numbers than" : "serve",
          " eights of a head's channels, the description says otherwise (own_levels)");
}

template <Format F>
void add_side(safetensors_writer& file, side_members const& side, std::vector<layer_artifact> const& layers) {
  std::size_t const channels = layers.front().key_ranges.size();
  constexpr std::size_t levels = level_count<F>();
  auto const book = [&](std::size_t layer) -> codebook const& { return layers[layer].*side.book; };
  if constexpr (levels > 0) {
    add_stacked<float>(
        file, side.name + ".levels", layers.size(),
        levels, [&](std::size_t layer) -> auto& { return book(layer).levels; });
    add_stacked<float>(
        file, side.name + ".decode_levels", layers.size(),
        levels, [&](std::size_t layer) -> auto& { return book(layer).decode_levels; });
  }
  if constexpr (is_by_channel<F>) add_channel_codes<F>(file, side, layers);
  add_stacked<float>(
      file, side.name + ".sensitivity", layers.size(),
      channels, [&](std::size_t layer) -> auto& { return layers[layer].*side.sensitivity; });
}

template <Format F>
void get_side(safetensors_file const& file, side_members const& side, std::size_t channels,
              std::vector<layer_artifact>& layers) {
  constexpr std::size_t levels = level_count<F>();
  if constexpr (levels > 0) {
    auto encode = get_stacked<float>(file, side.name + ".levels", layers.size(), levels);
    auto decode = get_stacked<float>(file, side.name + ".decode_levels", layers.size(), levels);
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      (layers[layer].*side.book).levels = std::move(encode[layer]);
      (layers[layer].*side.book).decode_levels = std::move(decode[layer]);
      static_cast<void>(table_of<F>(layers[layer].*side.book));  // throws for levels that cannot be
    }
  }
  if constexpr (is_by_channel<F>) get_channel_codes<F>(file, side, channels, layers);
  auto sensitivity = get_sensitivity<float>(file, side.name + ".sensitivity", layers.size(), channels);
  for (std::size_t layer = 0; layer < layers.size(); ++layer)
    layers[layer].*side.sensitivity = std::move(sensitivity[layer]);
}

inline artifact_info info_of(nlohmann::json const& description, safetensors_file const& file) {
  auto info = description.at("info").get<artifact_info>();
  info.hash = file.metadata("hash");
  validate(info.shape);
  require(info.sinks >= 0, errc::bad_file, info.sinks, " sinks, expected 0 or more");
  auto const channels = static_cast<std::size_t>(info.shape.kv_channels());
  outliers_per_side(info.outlier_fraction_k, channels);
  outliers_per_side(info.outlier_fraction_v, channels);
  return info;
}

}  // namespace detail

/// The file's bytes; `hash` receives the content's hash if given.
template <Spec S>
std::vector<std::byte> to_bytes(artifact<S> const& it, std::string* hash = nullptr) {
  require(!it.layers.empty() && it.info.spec == S::name(), errc::bad_format, "artifact of ", it.layers.size(),
          " layers and spec \"", it.info.spec, "\", expected \"", S::name(), "\"");
  std::size_t const channels = it.layers.front().key_ranges.size();
  require(it.layers.size() == static_cast<std::size_t>(it.info.shape.layers) &&
              channels == static_cast<std::size_t>(it.info.shape.kv_channels()),
          errc::bad_shape, "artifact of ", it.layers.size(), " layers x ", channels, " channels, for a model of ",
          it.info.shape.layers, " x ", it.info.shape.kv_channels());
  auto file = detail::begin_container(artifact_kind, it.info.shape);
  detail::add_ranges(file, it.layers);
  auto const sides = detail::both_sides();
  detail::add_side<typename S::key_format>(file, sides[0], it.layers);
  detail::add_side<typename S::value_format>(file, sides[1], it.layers);
  nlohmann::json layers = nlohmann::json::array();
  for (layer_artifact const& layer : it.layers) layers.push_back({{"key", layer.key}, {"value", layer.value}});
  std::string const content = detail::finish_container(file, {{"info", it.info}, {"layers", std::move(layers)}});
  if (hash != nullptr) *hash = content;
  return file.bytes();
}

/// Writes the artifact; the file appears whole or not at all. Sets `info.hash`.
template <Spec S>
void save(artifact<S>& it, std::filesystem::path const& path) {
  auto const bytes = to_bytes(it, &it.info.hash);
  atomic_file file(path);
  file.write(bytes);
  file.commit();
}

/// What an artifact file says of itself.
inline artifact_info read_artifact_info(safetensors_file const& file) {
  return detail::reading(file.origin(),
                         [&] { return detail::info_of(detail::open_container(file, artifact_kind), file); });
}

/// Throws `bad_file` for anything that is not a whole artifact, `bad_format` for one of another spec.
template <Spec S>
artifact<S> read_artifact(safetensors_file const& file) {
  artifact_info const about = read_artifact_info(file);
  require(about.spec == S::name(), errc::bad_format, file.origin(), ": an artifact of ", about.spec, ", expected ",
          S::name());
  return detail::reading(file.origin(), [&] {
    auto const description = detail::open_container(file, artifact_kind);
    auto const layers = static_cast<std::size_t>(about.shape.layers);
    auto const channels = static_cast<std::size_t>(about.shape.kv_channels());
    require(description.at("layers").size() == layers, errc::bad_file, "reports of ", description.at("layers").size(),
            " layers, expected ", layers);
    artifact<S> it{about, std::vector<layer_artifact>()};
    for (auto& ranges : detail::get_ranges(file, layers, channels))
      it.layers.push_back({std::move(ranges), {}, {}, {}, {}});
    for (std::size_t layer = 0; layer < layers; ++layer) {
      description.at("layers").at(layer).at("key").get_to(it.layers[layer].key);
      description.at("layers").at(layer).at("value").get_to(it.layers[layer].value);
    }
    auto const sides = detail::both_sides();
    detail::get_side<typename S::key_format>(file, sides[0], channels, it.layers);
    detail::get_side<typename S::value_format>(file, sides[1], channels, it.layers);
    detail::require_said(about, it.layers);
    return it;
  });
}

/// The artifact of a file. Throws `bad_file` for what is none, `bad_format` for one of other formats than `S`.
template <Spec S>
artifact<S> load_artifact(std::filesystem::path const& path) {
  return read_artifact<S>(safetensors_file::read(path));
}

/// Reads an artifact of any of `specs` and calls `f(artifact<S>&&)`.
template <class F>
void visit_artifact(std::filesystem::path const& path, F&& f) {
  auto const file = safetensors_file::read(path);
  visit_spec(read_artifact_info(file).spec, [&]<class S>(std::type_identity<S>) { f(read_artifact<S>(file)); });
}

}  // namespace kvquant
