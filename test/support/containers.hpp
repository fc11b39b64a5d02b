#pragma once
/// \file
/// safetensors files taken apart and put together again, right or wrong.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/core/hash.hpp"

namespace kvquant::test {

using bytes = std::vector<std::byte>;

inline bytes to_bytes_of(std::string_view text) {
  auto const raw = std::as_bytes(std::span(text));
  return {raw.begin(), raw.end()};
}

inline bytes read_bytes(std::filesystem::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return to_bytes_of(std::string(std::istreambuf_iterator<char>(in), {}));
}

/// A container of that header text, `data_bytes` zeros behind it.
inline bytes container_of(std::string_view header, std::size_t data_bytes = 0) {
  bytes file(8);
  for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<std::byte>(std::uint64_t{header.size()} >> (8 * i));
  bytes const text = to_bytes_of(header);
  file.insert(file.end(), text.begin(), text.end());
  file.resize(file.size() + data_bytes);
  return file;
}

/// The parts of a container that is right.
struct container_parts {
  nlohmann::json header, description;
  bytes data;

  explicit container_parts(bytes const& file) {
    std::uint64_t length = 0;
    for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<std::uint64_t>(file[i]);
    auto const* const text = reinterpret_cast<char const*>(file.data()) + 8;
    header = nlohmann::json::parse(text, text + length);
    data.assign(file.begin() + static_cast<std::ptrdiff_t>(8 + length), file.end());
    description = nlohmann::json::parse(metadata("description").get<std::string>());
  }

  nlohmann::json& metadata(std::string const& key) { return header["__metadata__"][key]; }

  /// The bytes of a tensor, from its first.
  std::byte* tensor(std::string const& name) {
    return data.data() + header.at(name).at("data_offsets").at(0).get<std::size_t>();
  }
  template <class T>
  void set(std::string const& name, std::size_t index, T value) {
    std::memcpy(tensor(name) + index * sizeof value, &value, sizeof value);
  }

  bytes joined() const {
    bytes file = container_of(header.dump());
    file.insert(file.end(), data.begin(), data.end());
    return file;
  }
  /// With the description as it is now and the hash that belongs to it: what only a forger, or a bug, would write.
  bytes forged() {
    std::string const text = description.dump();
    fingerprint hash;
    hash.add(std::string_view(text));
    hash.add(std::span<std::byte const>(data));
    metadata("description") = text;
    metadata("hash") = hash.hex();
    return joined();
  }
};

/// A folder of its own, gone at the end.
class temporary_folder {
 public:
  temporary_folder()
      : path_(std::filesystem::temp_directory_path() / ("kvquant-test-" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directories(path_);
  }
  temporary_folder(temporary_folder const&) = delete;
  temporary_folder& operator=(temporary_folder const&) = delete;
  ~temporary_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

}  // namespace kvquant::test
