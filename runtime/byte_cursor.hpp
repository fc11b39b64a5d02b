#pragma once
/// \file
/// Reads untrusted little-endian bytes from front to back: every length is compared with what is left before it is
/// used.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "kvquant/core/error.hpp"

namespace kvquant::runtime {

class byte_cursor {
 public:
  /// Both must outlive the cursor; `origin` names the bytes in errors.
  byte_cursor(std::span<std::byte const> bytes, std::string_view origin) : bytes_(bytes), origin_(origin) {}

  std::size_t at() const { return at_; }
  std::size_t left() const { return bytes_.size() - at_; }

  template <class... Parts>
  [[noreturn]] void fail(errc code, std::size_t at, Parts const&... parts) const {
    throw error{code, text(origin_, ": byte ", at, ": ", parts...)};
  }

  /// A number as it is stored. `what` says in the error what was to come.
  template <class T>
    requires std::is_arithmetic_v<T> T take(std::string_view what) {
      static_assert(std::endian::native == std::endian::little);
      T value;
      std::memcpy(&value, take_bytes(sizeof(T), what).data(), sizeof(T));
      return value;
    }

  /// A 64-bit count of things that take at least `bytes_each` bytes of the file, so that it bounds what is allocated.
  std::size_t take_count(std::size_t bytes_each, std::string_view what) {
    auto const count = take<std::uint64_t>(what);
    if (count > left() / bytes_each)
      fail(errc::bad_file, at_ - sizeof count, what, " is ", count, ", but the ", left(),
           " bytes left in the file hold at most ", left() / bytes_each);
    return static_cast<std::size_t>(count);
  }

  /// A 64-bit length and that many bytes.
  std::string_view take_string(std::string_view what) {
    std::size_t const length = take_count(1, what);
    return {reinterpret_cast<char const*>(take_bytes(length, what).data()), length};
  }

 private:
  std::span<std::byte const> take_bytes(std::size_t count, std::string_view what) {
    if (count > left())
      fail(errc::bad_file, at_, "the file ends inside ", what, ": expected ", count, " bytes, found ", left());
    auto const taken = bytes_.subspan(at_, count);
    at_ += count;
    return taken;
  }

  std::span<std::byte const> bytes_;
  std::string_view origin_;
  std::size_t at_ = 0;
};

}  // namespace kvquant::runtime
