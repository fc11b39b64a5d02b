#pragma once
/// \file
/// Every backend that was built, over every format: compiled once here, for whoever chooses both at run time.

#include <filesystem>
#include <memory>
#include <span>
#include <string_view>

#include "kvquant/attend/backend.hpp"
#include "kvquant/calibrate/any_artifact.hpp"
#include "kvquant/engine.hpp"

namespace kvquant {

/// Names of the backends that this build has.
std::span<std::string_view const> backend_names();

/// The fastest of them that this machine can run.
std::string_view default_backend();

/// What that backend lacks for the caches of an artifact. Throws `unsupported` for a name that is not among the names.
support supports(std::string_view backend, artifact_info const& artifact);

/// The cache that an artifact describes. Throws `unsupported` naming what the backend lacks.
std::unique_ptr<engine> make_engine(std::string_view backend, any_artifact const& artifact,
                                    cache_options const& options);

/// The same for the artifact of a file. Throws `bad_file` or `bad_format` for what is no artifact.
std::unique_ptr<engine> make_engine(std::string_view backend, std::filesystem::path const& artifact,
                                    cache_options const& options);

}  // namespace kvquant
