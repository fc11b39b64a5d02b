#pragma once
/// \file
/// An artifact whose datatypes are known at run time alone. Needs nlohmann/json, as `artifact_io.hpp` does.

#include <filesystem>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/artifact_io.hpp"

namespace kvquant {

/// `info.spec` says whose `artifact` it is.
struct any_artifact {
  artifact_info info;                  ///< with the spec's name
  std::vector<layer_artifact> layers;  ///< [info.shape.layers]

  /// Of formats that the program knows.
  template <Spec S>
  any_artifact(artifact<S> it) : info(std::move(it.info)), layers(std::move(it.layers)) {}
};

/// Throws `bad_file` or `bad_format` for what is no artifact of any of `specs`.
inline any_artifact load_any_artifact(std::filesystem::path const& path) {
  auto const file = safetensors_file::read(path);
  std::optional<any_artifact> read;
  visit_spec(read_artifact_info(file).spec, [&]<class S>(std::type_identity<S>) { read = read_artifact<S>(file); });
  return std::move(read).value();
}

/// Calls `f(artifact<S> const&)`. Throws `bad_format` where `info.spec` is none of `specs`.
template <class F>
void visit_artifact(any_artifact const& it, F&& f) {
  visit_spec(it.info.spec, [&]<class S>(std::type_identity<S>) {
    artifact<S> const typed{it.info, it.layers};
    f(typed);
  });
}

}  // namespace kvquant
