#pragma once
/// \file
/// The safetensors container: 8 bytes of header length (little endian), a JSON header, then the tensors' bytes.
/// https://github.com/huggingface/safetensors#format

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvquant/core/atomic_file.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant {

static_assert(std::endian::native == std::endian::little,
              "files hold little-endian numbers and are copied as they are");

namespace detail {

inline constexpr char const* metadata_name = "__metadata__";  // in the place of a tensor's

template <class T>
inline constexpr std::string_view safetensors_dtype = {};
template <>
inline constexpr std::string_view safetensors_dtype<half> = "F16";
template <>
inline constexpr std::string_view safetensors_dtype<float> = "F32";
template <>
inline constexpr std::string_view safetensors_dtype<double> = "F64";
template <>
inline constexpr std::string_view safetensors_dtype<std::uint64_t> = "U64";
template <>
inline constexpr std::string_view safetensors_dtype<std::uint16_t> = "U16";
template <>
inline constexpr std::string_view safetensors_dtype<std::uint8_t> = "U8";

inline std::size_t dtype_bytes(std::string_view dtype) {
  constexpr std::array<std::pair<std::string_view, std::size_t>, 6> known = {
      {{"F16", 2}, {"F32", 4}, {"F64", 8}, {"U64", 8}, {"U16", 2}, {"U8", 1}}};
  for (auto const& [name, bytes] : known)
    if (name == dtype) return bytes;
  throw error{errc::bad_file, text("tensor of type ", dtype, ", expected F16, F32, F64, U64, U16 or U8")};
}

/// Parse errors of the JSON library quote all that they have read, whatever its length and bytes.
inline std::string complaint_of(nlohmann::json::exception const& failure) {
  auto const* const parsing = dynamic_cast<nlohmann::json::parse_error const*>(&failure);
  return parsing == nullptr ? failure.what() : text("no JSON from byte ", parsing->byte, " on");
}

/// Throws `bad_file` where the product of the sizes and `element_bytes` exceeds `limit`.
inline std::size_t tensor_bytes(std::span<std::size_t const> shape, std::size_t element_bytes, std::size_t limit) {
  std::size_t bytes = element_bytes;
  for (std::size_t const size : shape) {
    require(size == 0 || bytes <= limit / size, errc::bad_file, "a tensor is larger than its file");
    bytes *= size;
  }
  return bytes;
}

/// An object in which no name occurs twice: of equal ones a JSON parser keeps the last.
inline nlohmann::json parse_object(char const* begin, char const* end) {
  using event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> names;  // of each object that is open
  auto const check = [&](int, event what, nlohmann::json& value) {
    if (what == event::object_start) names.emplace_back();
    if (what == event::object_end) names.pop_back();
    if (what == event::key)
      require(names.back().insert(value.get<std::string>()).second, errc::bad_file, "the header has the name ", value,
              " twice");
    return true;
  };
  auto object = nlohmann::json::parse(begin, end, check);
  require(object.is_object(), errc::bad_file, "the header is no JSON object");
  return object;
}

/// Whole numbers, not negative; the conversion of JSON's numbers would let others pass.
inline std::vector<std::size_t> sizes_from(nlohmann::json const& value) {
  std::vector<std::size_t> sizes;
  for (nlohmann::json const& size : value.get_ref<nlohmann::json::array_t const&>()) {
    require(size.is_number_unsigned(), errc::bad_file, "the header has ", size, " where a size is expected");
    sizes.push_back(size.get<std::size_t>());
  }
  return sizes;
}

}  // namespace detail

/// Collects tensors and writes them to a file that appears whole or not at all.
class safetensors_writer {
 public:
  /// `metadata`: what `__metadata__` will say.
  explicit safetensors_writer(std::map<std::string, std::string> metadata) : metadata_(std::move(metadata)) {}

  /// Values are copied. Order of calls is order in the file.
  template <class T>
  void add(std::string const& name, std::vector<std::size_t> const& shape, std::span<T const> values) {
    require(name != detail::metadata_name && !header_.contains(name), errc::bad_value, "tensor \"", name,
            "\": the name is given twice");
    std::size_t const bytes = detail::tensor_bytes(shape, sizeof(T), SIZE_MAX);
    require(bytes == values.size_bytes(), errc::bad_shape, "tensor \"", name, "\": ", values.size(),
            " values do not fill its shape");
    std::size_t const begin = data_.size();
    auto const raw = std::as_bytes(values);
    data_.insert(data_.end(), raw.begin(), raw.end());
    header_[name] = {
        {"dtype", detail::safetensors_dtype<T>}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }

  /// The tensors' bytes so far.
  std::span<std::byte const> data() const { return data_; }
  /// Adds or replaces one string of the metadata.
  void set_metadata(std::string const& key, std::string const& value) { metadata_[key] = value; }

  /// The whole file.
  std::vector<std::byte> bytes() const {
    nlohmann::json header = header_;
    header[detail::metadata_name] = metadata_;
    std::string json = header.dump();
    json.resize((json.size() + 7) / 8 * 8, ' ');  // so that the tensors are aligned
    std::uint64_t const length = json.size();
    std::vector<std::byte> file(sizeof length + json.size() + data_.size());
    std::memcpy(file.data(), &length, sizeof length);
    std::memcpy(file.data() + sizeof length, json.data(), json.size());
    if (!data_.empty()) std::memcpy(file.data() + sizeof length + json.size(), data_.data(), data_.size());
    return file;
  }

  /// The file appears whole or not at all. Throws `bad_file` if it cannot be written.
  void write(std::filesystem::path const& path) const {
    atomic_file file(path);
    file.write(bytes());
    file.commit();
  }

 private:
  nlohmann::json header_ = nlohmann::json::object();
  std::map<std::string, std::string> metadata_;
  std::vector<std::byte> data_;
};

/// A container that was read into memory. Nothing in it is trusted; whatever does not fit is `bad_file`, naming
/// `origin`.
class safetensors_file {
 public:
  /// Larger headers are refused.
  static constexpr std::size_t largest_header_bytes = std::size_t{100} << 20;

  /// Throws `bad_file` for what cannot be read or is no safetensors file.
  static safetensors_file read(std::filesystem::path const& path) {
    std::error_code code;
    bool const regular = std::filesystem::is_regular_file(path, code);
    require(regular, errc::bad_file, path.string(), ": ", code ? code.message() : "not a file");
    std::vector<std::byte> bytes(std::filesystem::file_size(path));
    std::ifstream in(path, std::ios::binary);
    in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    require(in.good(), errc::bad_file, path.string(), ": cannot be read");
    return {std::move(bytes), path.string()};
  }

  /// Of bytes in memory; `origin` is what errors call them. Throws `bad_file`.
  safetensors_file(std::vector<std::byte> bytes, std::string origin)
      : bytes_(std::move(bytes)), origin_(std::move(origin)) {
    try {
      parse();
    } catch (nlohmann::json::exception const& failure) {
      throw error{errc::bad_file,
                  text(origin_, ": the header is not what is expected: ", detail::complaint_of(failure))};
    } catch (error const& failure) {
      throw error{failure.code, text(origin_, ": ", failure.what())};
    }
  }

  /// What errors call the file.
  std::string const& origin() const { return origin_; }
  /// All strings of `__metadata__`.
  std::map<std::string, std::string> const& metadata() const { return metadata_; }
  /// All bytes behind the header.
  std::span<std::byte const> data() const { return std::span(bytes_).subspan(data_begin_); }

  /// One of them. Throws `bad_file` if it is missing.
  std::string const& metadata(std::string const& key) const {
    auto const found = metadata_.find(key);
    require(found != metadata_.end(), errc::bad_file, origin_, ": the metadata has no \"", key, "\"");
    return found->second;
  }

  /// Of a tensor. Throws `bad_file` if it is missing.
  std::vector<std::size_t> const& shape(std::string const& name) const { return find(name).shape; }

  /// The values of a tensor, which must have that type and shape.
  template <class T>
  std::vector<T> get(std::string const& name, std::vector<std::size_t> const& shape) const {
    tensor const& it = find(name);
    require(it.dtype == detail::safetensors_dtype<T> && it.shape == shape, errc::bad_file, origin_, ": tensor \"", name,
            "\" is ", it.dtype, print(it.shape), ", expected ", detail::safetensors_dtype<T>, print(shape));
    std::vector<T> values(it.bytes / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), data().data() + it.begin, it.bytes);
    return values;
  }

 private:
  struct tensor {
    std::string dtype;
    std::vector<std::size_t> shape;
    std::size_t begin, bytes;
  };

  tensor const& find(std::string const& name) const {
    auto const found = tensors_.find(name);
    require(found != tensors_.end(), errc::bad_file, origin_, ": tensor \"", name, "\" is missing");
    return found->second;
  }
  static std::string print(std::vector<std::size_t> const& shape) {
    std::string out = "[";
    for (std::size_t const size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
    return out + "]";
  }

  void parse() {
    std::uint64_t length = 0;
    require(bytes_.size() >= sizeof length, errc::bad_file, "not a safetensors file: ", bytes_.size(), " bytes");
    std::memcpy(&length, bytes_.data(), sizeof length);
    require(length <= largest_header_bytes && length <= bytes_.size() - sizeof length, errc::bad_file,
            "not a safetensors file: a header of ", length, " bytes in a file of ", bytes_.size());
    data_begin_ = sizeof length + static_cast<std::size_t>(length);
    auto const* const json = reinterpret_cast<char const*>(bytes_.data()) + sizeof length;
    auto const header = detail::parse_object(json, json + length);
    for (auto const& [name, value] : header.items()) {
      if (name == detail::metadata_name)
        metadata_ = value.get<std::map<std::string, std::string>>();
      else
        tensors_.emplace(name, parse_tensor(name, value));
    }
    check_coverage();
  }

  tensor parse_tensor(std::string const& name, nlohmann::json const& value) const {
    tensor it{value.at("dtype").get<std::string>(), detail::sizes_from(value.at("shape")), 0, 0};
    auto const offsets = detail::sizes_from(value.at("data_offsets"));
    require(offsets.size() == 2, errc::bad_file, "tensor \"", name, "\" has ", offsets.size(), " offsets, expected 2");
    std::size_t const begin = offsets[0], end = offsets[1];
    require(begin <= end && end <= data().size(), errc::bad_file, "tensor \"", name, "\" lies at bytes ", begin, " to ",
            end, " of ", data().size());
    it.begin = begin;
    it.bytes = detail::tensor_bytes(it.shape, detail::dtype_bytes(it.dtype), data().size());
    require(it.bytes == end - begin, errc::bad_file, "tensor \"", name, "\": ", end - begin, " bytes for ", it.dtype,
            print(it.shape));
    return it;
  }

  /// Tensors follow one another without gap or overlap, up to the end.
  void check_coverage() const {
    std::vector<tensor const*> order;
    for (auto const& [name, it] : tensors_) order.push_back(&it);
    std::sort(order.begin(), order.end(), [](tensor const* a, tensor const* b) {
      return std::pair(a->begin, a->bytes) < std::pair(b->begin, b->bytes);
    });
    std::size_t next = 0;
    for (tensor const* it : order) {
      require(it->begin == next, errc::bad_file, "tensors overlap or leave a gap at byte ", next, " of the data");
      next = it->begin + it->bytes;
    }
    require(next == data().size(), errc::bad_file, data().size() - next, " bytes follow the last tensor");
  }

  std::vector<std::byte> bytes_;
  std::string origin_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, tensor> tensors_;
  std::size_t data_begin_ = 0;
};

}  // namespace kvquant
