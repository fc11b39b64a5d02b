#pragma once
/// \file
/// Structs of the interface, whichever version of them the caller knows.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>

#include "adapters/c/kvquant.h"
#include "kvquant/core/error.hpp"

namespace kvquant::c {

/// Beyond what any struct will have; what is larger is no size but garbage.
inline constexpr std::size_t largest_struct = 4096;

/// `T` begins with its size. Throws `bad_value` for what cannot be one.
template <class T>
std::size_t size_of(T const* it, char const* what) {
  static_assert(std::is_trivially_copyable_v<T> && offsetof(T, size) == 0);
  require(it != nullptr, errc::bad_value, what, " is NULL, expected a struct");
  std::size_t size = 0;
  std::memcpy(&size, it, sizeof size);
  require(size >= sizeof size && size <= largest_struct, errc::bad_value, what, ".size is ", size, ", expected ",
          sizeof(T), ", the size of the struct");
  return size;
}

/// What the caller set; members that its version lacks are those of `defaults`. Throws `unsupported` where it set one
/// that this version lacks.
template <class T>
T read_struct(T const* from, char const* what, T defaults = {}) {
  std::size_t const size = size_of(from, what);
  std::memcpy(&defaults, from, std::min(size, sizeof(T)));
  if (size > sizeof(T)) {
    auto const unknown = std::span(reinterpret_cast<std::byte const*>(from), size).subspan(sizeof(T));
    require(std::all_of(unknown.begin(), unknown.end(), [](std::byte it) { return it == std::byte{0}; }),
            errc::unsupported, what, " has members set that version ", KVQUANT_VERSION, " does not know");
  }
  return defaults;
}

/// As many members as the caller's version has; what this version lacks is zero.
template <class T>
void write_struct(T* to, char const* what, T value) {
  std::size_t const size = size_of(to, what), known = std::min(size, sizeof(T));
  value.size = size;
  auto* const bytes = reinterpret_cast<std::byte*>(to);
  std::memcpy(bytes, &value, known);
  std::fill(bytes + known, bytes + size, std::byte{0});
}

/// The same for a struct that has no size yet.
template <class T>
void init_struct(T* to, char const* what, std::size_t size, T const& defaults) {
  require(to != nullptr, errc::bad_value, what, " is NULL, expected a struct");
  require(size >= sizeof size, errc::bad_value, what, " of ", size, " bytes, expected ", sizeof(T),
          ", the size of the struct");
  std::memcpy(static_cast<void*>(to), &size, sizeof size);
  write_struct(to, what, defaults);
}

}  // namespace kvquant::c
