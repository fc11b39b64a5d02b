#pragma once
/// \file
/// Files that appear whole or not at all.

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <ios>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "kvquant/core/error.hpp"

namespace kvquant {

/// Writes beside `path` under a temporary name; `commit()` renames it into place. Without a commit (an exception, say)
/// the temporary file is removed and whatever stood at `path` stays. Throws `bad_file` naming path and reason.
class atomic_file {
 public:
  /// Opens a temporary file beside `path`. Throws `bad_file`.
  explicit atomic_file(std::filesystem::path path) : path_(std::move(path)), temporary_(path_) {
    temporary_ += ".partial";
    out_.open(temporary_, std::ios::binary | std::ios::trunc);
    if (!out_) fail("cannot be created");
  }
  atomic_file(atomic_file const&) = delete;
  atomic_file& operator=(atomic_file const&) = delete;
  ~atomic_file() {
    if (committed_) return;
    out_.close();
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
  }

  ///@{
  /// Appends. Throws `bad_file`, on a full disk say.
  void write(std::span<std::byte const> bytes) {
    out_.write(reinterpret_cast<char const*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!out_) fail("cannot be written");
  }
  void write(std::string_view bytes) { write(std::as_bytes(std::span(bytes))); }
  ///@}

  /// Gives the file its name. Without it, nothing is left.
  void commit() {
    out_.close();
    if (!out_) fail("cannot be written");
    std::error_code code;
    std::filesystem::rename(temporary_, path_, code);
    if (code) throw error{errc::bad_file, text(path_.string(), ": cannot be put in place: ", code.message())};
    committed_ = true;
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    int const reason = errno;
    throw error{errc::bad_file,
                text(path_.string(), ": ", what, reason != 0 ? text(": ", std::strerror(reason)) : std::string{})};
  }

  std::filesystem::path path_, temporary_;
  std::ofstream out_;
  bool committed_ = false;
};

}  // namespace kvquant
