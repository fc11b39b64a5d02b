#pragma once
/// \file
/// Files of sequences taken apart and put together again, right or wrong, and a cache that is small enough to try every
/// byte of them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvquant/cache/cache_io.hpp"
#include "test/support/containers.hpp"
#include "test/support/small_cache.hpp"

namespace kvquant::test {

/// One layer, one head, 2 sinks; with a window, if it is to have one, and nothing kept behind it. The seeds of the
/// fuzzer are its sequences.
struct tiny_cache : row_major_cache<spec<nuq<2>, nuq<2>>> {
  static artifact_choice choice(int window = 0) {
    artifact_choice it{.shape = {.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 16, .rope = {}},
                       .fraction_k = 0.012,
                       .fraction_v = 0.012,
                       .sinks = 2};
    if (window > 0) it.shape.local = {.layers = {0}, .window = window};
    return it;
  }
  static token_stream const& stream() {
    static token_stream const it(choice().shape, 256);
    return it;
  }
  explicit tiny_cache(std::size_t pages = 3, int window = 0)
      : kv_cache(artifact_for<spec_type>(stream(), choice(window)),
                 {.max_tokens = pages * page_tokens, .rewind_tokens = 0}) {}
};

/// `file` with magic, version, size and checksum as they should be; none where it has no description.
inline std::optional<bytes> with_right_prefix(std::span<std::byte const> file) {
  detail::sequence_prefix prefix;
  if (file.size() < sizeof prefix) return std::nullopt;
  std::memcpy(&prefix, file.data(), sizeof prefix);
  std::size_t const offset = detail::data_offset(prefix.description_bytes);
  if (offset > file.size()) return std::nullopt;
  std::copy(sequence_magic.begin(), sequence_magic.end(), prefix.magic);
  if (prefix.version != detail::windowed_version) prefix.version = detail::whole_version;
  prefix.data_bytes = file.size() - offset;
  detail::sequence_hash hash(prefix);
  hash.add(file.subspan(sizeof prefix, prefix.description_bytes));
  hash.add(file.subspan(offset));
  prefix.checksum = hash.value();
  bytes right(file.begin(), file.end());
  std::memcpy(right.data(), &prefix, sizeof prefix);
  return right;
}

/// The parts of a file that is right.
struct sequence_parts {
  nlohmann::json description;
  bytes data;

  explicit sequence_parts(bytes const& file) {
    detail::sequence_prefix prefix;
    std::memcpy(&prefix, file.data(), sizeof prefix);
    auto const* const text = reinterpret_cast<char const*>(file.data()) + sizeof prefix;
    description = nlohmann::json::parse(text, text + prefix.description_bytes);
    data.assign(file.end() - static_cast<std::ptrdiff_t>(prefix.data_bytes), file.end());
  }

  template <class T>
  void set(std::size_t at, T value) {
    std::memcpy(data.data() + at, &value, sizeof value);
  }

  /// With the checksum that belongs to the parts as they are now: what only a forger, or a bug, would write.
  bytes forged() const {
    std::string const text = description.dump();
    detail::sequence_prefix prefix{};
    prefix.version = description.contains("gone") ? detail::windowed_version : detail::whole_version;
    prefix.description_bytes = static_cast<std::uint32_t>(text.size());
    bytes file(detail::data_offset(text.size()));
    std::memcpy(file.data(), &prefix, sizeof prefix);
    std::memcpy(file.data() + sizeof prefix, text.data(), text.size());
    file.insert(file.end(), data.begin(), data.end());
    return with_right_prefix(file).value();
  }
};

/// The file of a sequence.
template <class Cache>
bytes saved(Cache const& cache, sequence const& of) {
  temporary_folder const folder;
  save_sequence(cache, of, folder / "x.kvs");
  return read_bytes(folder / "x.kvs");
}

template <class Cache>
sequence loaded(Cache& cache, bytes const& file) {
  return load_sequence(cache, sequence_file(file, "x.kvs"));
}

}  // namespace kvquant::test
