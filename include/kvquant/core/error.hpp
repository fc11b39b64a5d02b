#pragma once
/// \file
/// The only exception the library throws.

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace kvquant {

/// What kind of thing went wrong: for programs, where `what()` is for people.
enum class errc {
  bad_shape,     ///< sizes that do not fit together
  bad_value,     ///< NaN, infinity, or a number out of its range
  bad_format,    ///< an unknown datatype, or one that differs from what is expected
  bad_file,      ///< a file that cannot be read or written, or whose bytes are not what they should be
  out_of_pages,  ///< the cache is full; the sequence is as it was
  unsupported,   ///< the feature that is missing is named in the text
  device         ///< an accelerator reported an error
};

/// As it is spelled here.
constexpr std::string_view to_string(errc code) noexcept {
  switch (code) {
    case errc::bad_shape: return "bad_shape";
    case errc::bad_value: return "bad_value";
    case errc::bad_format: return "bad_format";
    case errc::bad_file: return "bad_file";
    case errc::out_of_pages: return "out_of_pages";
    case errc::unsupported: return "unsupported";
    case errc::device: return "device";
  }
  return "unknown";
}

/// `what()` says what was wrong, where, and what was expected.
struct error : std::runtime_error {
  errc code;  ///< what kind of thing
  /// `text` becomes `what()`.
  error(errc c, std::string const& text) : std::runtime_error(text), code(c) {}
};

/// Joins its arguments as they print. For error texts only: it is slow.
template <class... Parts>
std::string text(Parts const&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

/// Throws `error{code, text(parts...)}` unless `condition` holds. The parts are evaluated either way, so pass cheap
/// ones.
template <class... Parts>
constexpr void require(bool condition, errc code, Parts const&... parts) {
  if (!condition) [[unlikely]]
    throw error{code, text(parts...)};
}

}  // namespace kvquant
