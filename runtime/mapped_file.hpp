#pragma once
/// \file
/// A whole file as read-only memory.

#include <cstddef>
#include <filesystem>
#include <span>

namespace kvquant::runtime {

/// Owns a private mapping. If another process shortens the file meanwhile, reading beyond its new end ends the program
/// (SIGBUS), as with every mapping.
class mapped_file {
 public:
  mapped_file() = default;
  /// Throws `bad_file` if `path` is not a regular file that can be opened and mapped. An empty file is an empty span.
  explicit mapped_file(std::filesystem::path const& path);
  mapped_file(mapped_file&& other) noexcept;
  mapped_file& operator=(mapped_file&& other) noexcept;
  ~mapped_file();

  std::span<std::byte const> bytes() const { return bytes_; }

 private:
  std::span<std::byte const> bytes_;
};

}  // namespace kvquant::runtime
