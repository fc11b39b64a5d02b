#pragma once
/// \file
/// GGUF v2 and v3 files, memory-mapped. The bytes are untrusted: every length is checked against the file before use.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/tensor_type.hpp"

namespace kvquant::runtime {

/// A metadata array. Integers and bools widen to int64, floats to double; strings point into the mapping.
using gguf_array = std::variant<std::vector<std::int64_t>, std::vector<double>, std::vector<std::string_view>>;

/// A metadata value: signed and unsigned integers widen to 64 bits, float32 to double.
using gguf_value = std::variant<std::int64_t, std::uint64_t, double, bool, std::string_view, gguf_array>;

struct gguf_tensor {
  std::string_view name;
  tensor_type type{};
  /// As GGUF orders them: shape[0] is contiguous. A weight that maps n_in to n_out has shape {n_in, n_out}.
  std::vector<std::size_t> shape;
  std::span<std::byte const> data;

  std::size_t elements() const;
  std::size_t rows() const;                         ///< elements() / shape[0]
  std::size_t cols() const { return shape.at(0); }  ///< a multiple of the type's block
};

class gguf_file {
 public:
  /// Maps and validates `path`. Throws `bad_file` saying what is wrong and at which byte; `unsupported` naming the
  /// version, the byte order, a nested array, or a tensor and its type, that this runtime cannot read.
  static gguf_file open(std::filesystem::path const& path);
  /// The same over bytes that the caller keeps alive; `origin` names them in errors.
  static gguf_file parse(std::span<std::byte const> bytes, std::string origin);

  gguf_file(gguf_file&&) noexcept;
  gguf_file& operator=(gguf_file&&) noexcept;
  ~gguf_file();

  std::uint32_t version() const;
  std::string const& origin() const;  ///< the file's path as given, for messages
  std::size_t bytes() const;
  /// XXH3-128 of the whole file as 32 hex digits; computed at the first call.
  std::string const& hash() const;

  std::map<std::string_view, gguf_value> const& metadata() const;
  bool contains(std::string_view key) const;

  /// Typed look-ups. They throw `bad_file` naming key, expected and found type; the ones with a default return it if
  /// the key is missing.
  std::int64_t integer(std::string_view key) const;
  double number(std::string_view key) const;  ///< finite; integers are accepted
  bool boolean(std::string_view key, bool otherwise) const;
  std::string_view string(std::string_view key) const;
  std::int64_t integer_or(std::string_view key, std::int64_t otherwise) const;
  double number_or(std::string_view key, double otherwise) const;
  std::string_view string_or(std::string_view key, std::string_view otherwise) const;
  std::vector<std::string_view> const& strings(std::string_view key) const;
  std::vector<std::int64_t> const& integers(std::string_view key) const;
  std::vector<double> const& numbers(std::string_view key) const;

  std::vector<gguf_tensor> const& tensors() const;  ///< in file order
  gguf_tensor const* find_tensor(std::string_view name) const;
  gguf_tensor const& tensor(std::string_view name) const;  ///< throws `bad_file` naming it

 private:
  struct state;
  explicit gguf_file(std::unique_ptr<state>);
  std::unique_ptr<state> state_;
};

}  // namespace kvquant::runtime
