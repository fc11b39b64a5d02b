#pragma once
/// \file
/// Whether an artifact belongs to a model.

#include <filesystem>
#include <string>

#include "kvquant/calibrate/artifact.hpp"
#include "runtime/model_config.hpp"

namespace kvquant::runtime {

/// Throws `bad_format` naming the file and both models unless the artifact was made for the model of that hash and
/// shape.
void require_made_for(std::filesystem::path const& path, artifact_info const& info, model_config const& config,
                      std::string const& model_hash);

}  // namespace kvquant::runtime
