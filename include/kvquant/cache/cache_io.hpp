#pragma once
/// \file
/// Sequences as files (docs/cache_format.md). Needs nlohmann/json and xxHash, both header-only.
///
/// A file serves the cache of the same model, artifact, sinks and tail, whatever its backend: pages are canonical.

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/cache/row_major_layout.hpp"
#include "kvquant/core/atomic_file.hpp"
#include "kvquant/core/error.hpp"

namespace kvquant {

/// How a file of a sequence begins.
inline constexpr std::string_view sequence_magic = "KVQSEQ\r\n";

/// What a file of a sequence says of itself.
struct sequence_info {
  std::string spec, model_hash, artifact_hash;  ///< formats of keys and values; hashes are empty where there was none
  int layers = 0, kv_heads = 0, head_dim = 0;   ///< of the model
  std::size_t sinks = 0;                        ///< exact tokens at the start
  std::size_t tail_tokens = 0;                  ///< exact tokens at the end
  std::size_t tokens = 0, sealed = 0;           ///< all of them, and those of them in pages
  std::vector<int> local{};    ///< layers that lack their first pages, which lay behind their window; rising
  std::size_t gone_pages = 0;  ///< how many; 0: no layer lacks any
  page_geometry geometry;      ///< bits and slots of its pages; no widths

  /// Elements of a token, on one side.
  std::size_t kv_channels() const { return static_cast<std::size_t>(kv_heads) * static_cast<std::size_t>(head_dim); }
  /// The last one may be re-opened.
  std::size_t pages() const { return sealed / page_tokens + (sealed % page_tokens != 0 ? 1 : 0); }
  /// Sinks and tail.
  std::size_t exact_tokens() const { return sinks + tail_tokens; }
};

/// The description in the file; docs/cache_format.md.
inline void to_json(nlohmann::json& out, sequence_info const& it) {
  out = {{"spec", it.spec},
         {"model_hash", it.model_hash},
         {"artifact_hash", it.artifact_hash},
         {"layers", it.layers},
         {"kv_heads", it.kv_heads},
         {"head_dim", it.head_dim},
         {"sinks", it.sinks},
         {"tail_tokens", it.tail_tokens},
         {"tokens", it.tokens},
         {"sealed", it.sealed},
         {"k_bits", it.geometry.k_bits},
         {"v_bits", it.geometry.v_bits},
         {"k_slots", it.geometry.k_slots},
         {"v_slots", it.geometry.v_slots}};
  if (it.geometry.k_token_bits > 0) out["k_token_bits"] = it.geometry.k_token_bits;
  if (it.geometry.v_token_bits > 0) out["v_token_bits"] = it.geometry.v_token_bits;
  if (it.gone_pages > 0) out["gone"] = {{"layers", it.local}, {"pages", it.gone_pages}};
}

namespace detail {

/// Of files that have all pages of every layer, and of those that do not.
inline constexpr std::uint32_t whole_version = 1, windowed_version = 2;

/// The start of a file; little-endian. Description, padding to `page_alignment`, then the data follow.
struct sequence_prefix {
  char magic[8];
  std::uint32_t version;
  std::uint32_t description_bytes;
  std::uint64_t data_bytes;
  std::uint64_t checksum;  ///< XXH3-64 of description and data, seeded with the other members
};
static_assert(sizeof(sequence_prefix) == 32);

inline std::size_t data_offset(std::size_t description_bytes) {
  return (sizeof(sequence_prefix) + description_bytes + page_alignment - 1) / page_alignment * page_alignment;
}

class sequence_hash {
 public:
  explicit sequence_hash(sequence_prefix const& prefix) : state_(XXH3_createState()) {
    if (!state_ || XXH3_64bits_reset(state_.get()) == XXH_ERROR) throw std::bad_alloc{};
    add(std::as_bytes(std::span(&prefix, 1)).first(offsetof(sequence_prefix, checksum)));
  }
  void add(std::span<std::byte const> bytes) { XXH3_64bits_update(state_.get(), bytes.data(), bytes.size()); }
  std::uint64_t value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct free_state {
    void operator()(XXH3_state_t* state) const noexcept { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, free_state> state_;
};

template <class T>
T whole_number(nlohmann::json const& description, char const* name) {
  nlohmann::json const& value = description.at(name);
  require(value.is_number_unsigned(), errc::bad_file, "\"", name, "\" is ", value.dump(), ", expected a whole number");
  auto const number = value.get<std::uint64_t>();
  require(std::in_range<T>(number), errc::bad_file, "\"", name, "\" is ", number, ", which is too large");
  return static_cast<T>(number);
}

inline void read_gone(nlohmann::json const& from, sequence_info& it) {
  it.gone_pages = whole_number<std::size_t>(from, "pages");
  int previous = -1;
  for (nlohmann::json const& layer : from.at("layers")) {
    require(layer.is_number_unsigned() && std::in_range<int>(layer.get<std::uint64_t>()) &&
                layer.get<int>() > previous && layer.get<int>() < it.layers,
            errc::bad_file, "pages are gone of layer ", layer.dump(), " after ", previous,
            ", expected rising numbers below ", it.layers);
    it.local.push_back(previous = layer.get<int>());
  }
  require(!it.local.empty() && it.gone_pages >= 1 && it.gone_pages < it.pages(), errc::bad_file, it.gone_pages, " of ",
          it.pages(), " pages are gone of ", it.local.size(), " layers, expected some and not all of one at least");
}

inline sequence_info info_of_sequence(nlohmann::json const& from, std::uint32_t version) {
  sequence_info it{.spec = from.at("spec").get<std::string>(),
                   .model_hash = from.at("model_hash").get<std::string>(),
                   .artifact_hash = from.at("artifact_hash").get<std::string>(),
                   .layers = whole_number<int>(from, "layers"),
                   .kv_heads = whole_number<int>(from, "kv_heads"),
                   .head_dim = whole_number<int>(from, "head_dim"),
                   .sinks = whole_number<std::uint32_t>(from, "sinks"),
                   .tail_tokens = whole_number<std::uint32_t>(from, "tail_tokens"),
                   .tokens = whole_number<std::size_t>(from, "tokens"),
                   .sealed = whole_number<std::size_t>(from, "sealed"),
                   .geometry = {}};
  it.geometry = {.head_dim = static_cast<std::size_t>(it.head_dim),
                 .k_bits = whole_number<int>(from, "k_bits"),
                 .v_bits = whole_number<int>(from, "v_bits"),
                 .k_slots = whole_number<std::uint32_t>(from, "k_slots"),
                 .v_slots = whole_number<std::uint32_t>(from, "v_slots")};
  if (from.contains("k_token_bits")) it.geometry.k_token_bits = whole_number<std::uint32_t>(from, "k_token_bits");
  if (from.contains("v_token_bits")) it.geometry.v_token_bits = whole_number<std::uint32_t>(from, "v_token_bits");
  require(it.sealed <= it.tokens && it.tokens - it.sealed == it.exact_tokens(), errc::bad_file, it.tokens,
          " tokens, expected ", it.sinks, " sinks + ", it.sealed, " in pages + ", it.tail_tokens, " in the tail");
  if (version == windowed_version) read_gone(from.at("gone"), it);
  return it;
}

/// Bytes of exact rows of one layer: sinks' and tail's keys, then their values.
inline std::size_t exact_bytes(sequence_info const& it) {
  return (2 * it.exact_tokens() * it.kv_channels() * sizeof(half) + page_alignment - 1) / page_alignment *
         page_alignment;
}

/// Of those of a layer that are there.
inline std::size_t first_page(sequence_info const& it, int layer) {
  return std::binary_search(it.local.begin(), it.local.end(), layer) ? it.gone_pages : 0;
}

template <class Cache>
sequence_info info_for(Cache const& cache, sequence const& of) {
  layer_view const first = cache.view(of, 0);
  for (int layer = 0; layer < static_cast<int>(cache.layers()); ++layer)
    require(of.tokens(layer) == first.tokens() && cache.view(of, layer).sealed == first.sealed, errc::bad_value,
            "save: layer ", layer, " has ", of.tokens(layer), " tokens, layer 0 has ", first.tokens(),
            ", expected as many each, appended and cut alike");
  artifact_info const& info = cache.info();
  // The files of layers that have given back as much as another are alike.
  std::size_t gone = 0;
  for (int const layer : info.shape.local.layers) gone = std::max(gone, cache.view(of, layer).gone);
  return {.spec = info.spec,
          .model_hash = info.origin.model_hash,
          .artifact_hash = info.hash,
          .layers = info.shape.layers,
          .kv_heads = info.shape.kv_heads,
          .head_dim = info.shape.head_dim,
          .sinks = first.sink_k.rows,
          .tail_tokens = first.tail_k.rows,
          .tokens = first.tokens(),
          .sealed = first.sealed,
          .local = gone > 0 ? info.shape.local.layers : std::vector<int>{},
          .gone_pages = gone,
          .geometry = cache.geometry()};
}

/// Where the bytes of a file go. Its own type, so that each is compiled once, whatever the spec.
using byte_sink = std::function<void(std::span<std::byte const>)>;

inline byte_sink into(sequence_hash& hash) {
  return [&hash](std::span<std::byte const> bytes) { hash.add(bytes); };
}
inline byte_sink into(atomic_file& file) {
  return [&file](std::span<std::byte const> bytes) { file.write(bytes); };
}

/// Calls `write(bytes)` for all data of the sequence, piece by piece.
template <class Cache>
void write_data(Cache const& cache, sequence const& of, sequence_info const& info, byte_sink const& write) {
  using spec_type = typename Cache::spec_type;
  using layout = row_major_layout<spec_type>;
  canonical_page<spec_type> page(cache.geometry());
  std::vector<std::byte> bytes(layout::page_bytes(cache.geometry()));
  cache.wait();
  for (int layer = 0; layer < info.layers; ++layer) {
    layer_view const view = cache.view(of, layer);
    std::size_t written = 0;
    for (view2d<half const> const rows : {view.sink_k, view.tail_k, view.sink_v, view.tail_v}) {
      auto const piece = std::as_bytes(std::span(rows.data, rows.rows * rows.cols));
      write(piece);
      written += piece.size();
    }
    static constexpr std::byte zeros[page_alignment] = {};
    write(std::span(zeros).first(exact_bytes(info) - written));
    for (std::size_t index = first_page(info, layer); index < view.gone + view.pages.size(); ++index)
      for (std::size_t head = 0; head < cache.kv_heads(); ++head) {
        cache.read_page(of, layer, index, head, page);
        layout::write(cache.layer(layer).geometry(head), page, bytes);
        write(std::span<std::byte const>(bytes));
      }
  }
}

/// Bytes of one page of every KV head, and of that in every layer.
inline std::size_t block_bytes(sequence_info const& it) {
  return static_cast<std::size_t>(it.kv_heads) * it.geometry.page_bytes();
}
inline std::size_t bytes_per_page(sequence_info const& it) {
  return static_cast<std::size_t>(it.layers) * block_bytes(it);
}
/// Of a layer, and of all those before it.
inline std::size_t layer_bytes(sequence_info const& it, int layer) {
  return exact_bytes(it) + (it.pages() - first_page(it, layer)) * block_bytes(it);
}
inline std::size_t layer_offset(sequence_info const& it, int layer) {
  std::size_t bytes = 0;
  for (int before = 0; before < layer; ++before) bytes += layer_bytes(it, before);
  return bytes;
}
inline std::size_t data_bytes(sequence_info const& it) {
  return static_cast<std::size_t>(it.layers) * exact_bytes(it) + it.pages() * bytes_per_page(it) -
         it.local.size() * it.gone_pages * block_bytes(it);
}
/// Whether `bytes` are those of the sequence, for numbers of tokens from anywhere.
inline bool has_data_bytes(sequence_info const& it, std::size_t bytes) {
  std::size_t const least = it.pages() - it.gone_pages;  // that every layer has
  return it.exact_tokens() <= bytes && least <= bytes / bytes_per_page(it) &&
         it.gone_pages <= std::numeric_limits<std::size_t>::max() / 2 / bytes_per_page(it) && data_bytes(it) == bytes;
}

inline void require_finite(std::span<half const> values, char const* what) {
  for (half const x : values)
    require(std::isfinite(to_float(x)), errc::bad_file, what, " hold a value that is not finite");
}

template <Format F>
void require_finite_codes(std::vector<typename F::code_type> const& codes) {
  if constexpr (!F::scaled)
    for (auto const code : codes)
      require(std::isfinite(F::decode(F::default_table(), code)), errc::bad_file, "a page has the code ", code,
              ", which is not a finite number");
}

template <PackedSpec S>
void require_sound(canonical_page<S> const& page, page_geometry const& geometry) {
  require_finite_codes<typename S::key_format>(page.k_codes);
  require_finite_codes<typename S::value_format>(page.v_codes);
  for (value_range const it : page.v_ranges)
    require(std::isfinite(it.low()) && std::isfinite(it.high()) && it.low() <= it.high(), errc::bad_file,
            "a page has the value range [", it.low(), ", ", it.high(), "], expected finite bounds, lower <= upper");
  for (auto const* slots : {&page.k_slots, &page.v_slots}) {
    std::size_t next = 0;
    for (outlier const it : *slots) {
      require(it.index >= next && it.index < geometry.elements() && std::isfinite(to_float(it.residual)),
              errc::bad_file, "a page has a slot of index ", it.index, " and residual ", to_float(it.residual),
              ", expected rising indices below ", geometry.elements(), " and finite residuals");
      next = std::size_t{it.index} + 1;
    }
  }
}

}  // namespace detail

/// Writes a sequence; the file appears whole or not at all. Throws `bad_value` in the middle of a step, when layers
/// have different lengths, `bad_file` if it cannot be written.
template <class S, class Layout>
void save_sequence(kv_cache<S, Layout> const& cache, sequence const& of, std::filesystem::path const& path) {
  sequence_info const info = detail::info_for(cache, of);
  std::string const description = nlohmann::json(info).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  detail::sequence_prefix prefix{{},
                                 info.gone_pages > 0 ? detail::windowed_version : detail::whole_version,
                                 static_cast<std::uint32_t>(description.size()),
                                 detail::data_bytes(info),
                                 0};
  static_assert(sequence_magic.size() == sizeof prefix.magic);
  std::memcpy(prefix.magic, sequence_magic.data(), sizeof prefix.magic);
  detail::sequence_hash hash(prefix);
  hash.add(std::as_bytes(std::span(description)));
  detail::write_data(cache, of, info, detail::into(hash));
  prefix.checksum = hash.value();
  atomic_file file(path);
  file.write(std::as_bytes(std::span(&prefix, 1)));
  file.write(description);
  file.write(std::string(detail::data_offset(description.size()) - sizeof(prefix) - description.size(), '\0'));
  detail::write_data(cache, of, info, detail::into(file));
  file.commit();
}

/// A file in memory, mapped perhaps: what it says, and where its data lie. Throws `bad_file` for anything that is not
/// a whole file with the checksum it names; `origin` is what errors call it.
class sequence_file {
 public:
  /// Checks all but what the cache that reads it has to know; keeps a view of `bytes`.
  sequence_file(std::span<std::byte const> bytes, std::string origin) : origin_(std::move(origin)) {
    detail::sequence_prefix prefix;
    require(bytes.size() >= sizeof(prefix), errc::bad_file, origin_, ": ", bytes.size(),
            " bytes, too short for a sequence");
    std::memcpy(&prefix, bytes.data(), sizeof(prefix));
    require(std::string_view(prefix.magic, sizeof(prefix.magic)) == sequence_magic, errc::bad_file, origin_,
            ": not a kvquant sequence");
    require(prefix.version == detail::whole_version || prefix.version == detail::windowed_version, errc::bad_file,
            origin_, ": version ", prefix.version, ", expected ", detail::whole_version, " or ",
            detail::windowed_version);
    std::size_t const offset = detail::data_offset(prefix.description_bytes);
    require(offset <= bytes.size() && prefix.data_bytes == bytes.size() - offset, errc::bad_file, origin_, ": ",
            bytes.size(), " bytes, its start promises ", prefix.data_bytes, " behind ", offset);
    auto const description = bytes.subspan(sizeof(prefix), prefix.description_bytes);
    data_ = bytes.subspan(offset);
    for (std::byte const it : bytes.first(offset).subspan(sizeof(prefix) + prefix.description_bytes))
      require(it == std::byte{0}, errc::bad_file, origin_, ": damaged: bytes before the data that are not zero");
    detail::sequence_hash hash(prefix);
    hash.add(description);
    hash.add(data_);
    require(hash.value() == prefix.checksum, errc::bad_file, origin_,
            ": damaged: the content does not have the checksum that it should");
    std::string_view const json(reinterpret_cast<char const*>(description.data()), description.size());
    try {
      info_ = detail::info_of_sequence(nlohmann::json::parse(json), prefix.version);
    } catch (nlohmann::json::exception const&) {
      throw error{errc::bad_file, text(origin_, ": the description is not what is expected")};
    } catch (error const& failure) {
      throw error{errc::bad_file, text(origin_, ": ", failure.what())};
    }
  }

  /// The description.
  sequence_info const& info() const { return info_; }
  /// All bytes behind the description and its padding.
  std::span<std::byte const> data() const { return data_; }
  /// What errors call it.
  std::string const& origin() const { return origin_; }

 private:
  std::string origin_;
  std::span<std::byte const> data_;
  sequence_info info_;
};

/// Throws `bad_format` unless the file is of a sequence of this cache's model, artifact and options, saying what
/// differs.
template <class S, class Layout>
void require_fits(kv_cache<S, Layout> const& cache, sequence_file const& file) {
  sequence_info const& it = file.info();
  artifact_info const& own = cache.info();
  auto const same = [&](auto const& found, auto const& expected, char const* what) {
    require(found == expected, errc::bad_format, file.origin(), ": a sequence of another cache: ", what, " is ",
            nlohmann::json(found).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace), ", expected ",
            expected);
  };
  same(it.model_hash, own.origin.model_hash, "the model's hash");
  same(it.artifact_hash, own.hash, "the artifact's hash");
  same(it.spec, own.spec, "the format");
  same(it.layers, own.shape.layers, "layers");
  same(it.kv_heads, own.shape.kv_heads, "kv_heads");
  same(it.head_dim, own.shape.head_dim, "head_dim");
  same(it.geometry.k_bits, cache.geometry().k_bits, "k_bits");
  same(it.geometry.v_bits, cache.geometry().v_bits, "v_bits");
  same(it.geometry.k_token_bits, cache.geometry().k_token_bits, "k_token_bits");
  same(it.geometry.v_token_bits, cache.geometry().v_token_bits, "v_token_bits");
  same(it.geometry.k_slots, cache.geometry().k_slots, "k_slots");
  same(it.geometry.v_slots, cache.geometry().v_slots, "v_slots");
  same(it.sinks, std::min(it.tokens, cache.sinks()), "the number of sinks");
  require(it.local.empty() || it.local == own.shape.local.layers, errc::bad_format, file.origin(),
          ": a sequence of another cache: pages are gone of ", it.local.size(), " layers, expected the ",
          own.shape.local.layers.size(), " that have a window");
}

/// The sequence of a file. Throws `bad_format` if it is not one of this cache, `bad_file` if it is damaged,
/// `out_of_pages` if it does not fit.
template <class S, class Layout>
sequence load_sequence(kv_cache<S, Layout>& cache, sequence_file const& file) {
  require_fits(cache, file);
  sequence_info const& it = file.info();
  require(detail::has_data_bytes(it, file.data().size()), errc::bad_file, file.origin(), ": ", file.data().size(),
          " bytes are not those of ", it.tokens, " tokens, ", it.sealed, " of them in pages");
  require(it.sealed % page_tokens + it.tail_tokens < (cache.recent_pages() + 1) * page_tokens, errc::bad_format,
          file.origin(), ": a sequence of another cache: a tail of ", it.tail_tokens, " tokens, expected that of ",
          cache.recent_pages(), " recent pages");
  using layout = row_major_layout<S>;
  std::size_t const page_bytes = layout::page_bytes(cache.geometry()), row_bytes = it.kv_channels() * sizeof(half);
  auto const layer_data = [&](int layer) {
    return file.data().subspan(detail::layer_offset(it, layer), detail::layer_bytes(it, layer));
  };
  auto const copy_rows = [&](int layer, std::size_t first_row, view2d<half> to) {
    auto const from = layer_data(layer).subspan(first_row * row_bytes, to.rows * row_bytes);
    if (!from.empty()) std::memcpy(to.data, from.data(), from.size());
    detail::require_finite({to.data, to.rows * to.cols}, "exact tokens");
  };
  try {
    return cache.assemble(
        it.tokens, it.sealed,
        [&](int layer, bool tail, view2d<half> k, view2d<half> v) {
          std::size_t const first = tail ? it.sinks : 0;
          copy_rows(layer, first, k);
          copy_rows(layer, it.exact_tokens() + first, v);
        },
        [&](int layer, std::size_t index, std::size_t head, canonical_page<S>& page) {
          std::size_t const page_index = index - detail::first_page(it, layer);
          std::size_t const at = detail::exact_bytes(it) + (page_index * cache.kv_heads() + head) * page_bytes;
          layout::read(cache.layer(layer).geometry(head), layer_data(layer).subspan(at, page_bytes), page);
          detail::require_sound(page, cache.geometry());
        },
        it.gone_pages);
  } catch (error const& failure) {
    throw error{failure.code, text(file.origin(), ": ", failure.what())};
  }
}

/// Reads the file and loads it; throws `bad_file` as well if it cannot be read.
template <class S, class Layout>
sequence load_sequence(kv_cache<S, Layout>& cache, std::filesystem::path const& path) {
  std::error_code code;
  auto const size = std::filesystem::file_size(path, code);
  require(!code, errc::bad_file, path.string(), ": ", code.message());
  std::ifstream in(path, std::ios::binary);
  std::vector<std::byte> bytes(size);
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  require(in.good() && in.gcount() == static_cast<std::streamsize>(bytes.size()), errc::bad_file, path.string(),
          ": cannot be read");
  return load_sequence(cache, sequence_file(bytes, path.string()));
}

}  // namespace kvquant
