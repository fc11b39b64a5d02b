#pragma once
/// \file
/// Artifacts beside a model: what tables call them, and whether they belong to it.

#include <filesystem>
#include <string>

#include "kvquant/calibrate/artifact.hpp"
#include "runtime/model_config.hpp"

namespace kvquant::runtime {

/// "nuq3-1%", with what differs from the defaults: "nuq3-1%, 0 sinks, post-RoPE keys".
std::string label_of(artifact_info const& info);

/// Throws `bad_format` naming the file and both models unless the artifact was made for the model of that hash and
/// shape.
void require_made_for(std::filesystem::path const& path, artifact_info const& info, model_config const& config,
                      std::string const& model_hash);

}  // namespace kvquant::runtime
