#pragma once
/// \file
/// The parts of the extension module, and what they share.

#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "adapters/python/src/arrays.hpp"
#include "kvquant/calibrate/artifact.hpp"

namespace kvquant::python {

void bind_shape(nb::module_& module);
void bind_artifact(nb::module_& module);
void bind_calibrator(nb::module_& module);
void bind_cache(nb::module_& module);

/// An enumerator by its place in `names`; `ValueError` naming them all where there is none.
template <class Enum>
Enum enum_named(std::string_view name, std::span<std::string_view const> names, char const* what) {
  std::string known;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
    known += (i == 0 ? "\"" : ", \"") + std::string(names[i]) + "\"";
  }
  throw nb::value_error(text(what, ": \"", name, "\", expected one of ", known).c_str());
}

enum class side { key, value };
inline constexpr std::array<std::string_view, 2> side_names = {"key", "value"};

/// Keys and values of `shape`, for messages under the argument's name.
inline row_shape kv_rows(char const* name, model_shape const& shape) {
  return {name, static_cast<std::size_t>(shape.kv_heads), static_cast<std::size_t>(shape.head_dim)};
}
inline row_shape query_rows(char const* name, model_shape const& shape) {
  return {name, static_cast<std::size_t>(shape.q_heads), static_cast<std::size_t>(shape.head_dim)};
}

/// The fractions of keys and values from one number or a pair of them.
std::pair<double, double> fractions_from(nb::handle given, char const* name);

}  // namespace kvquant::python
