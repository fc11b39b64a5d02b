#pragma once
/// \file
/// What tables call an artifact.

#include <string>

#include "kvquant/calibrate/artifact.hpp"

namespace kvquant {

/// "nuq3-1%", with what differs from the defaults: "nuq3-1%, 0 sinks, post-RoPE keys".
std::string label_of(artifact_info const& info);

}  // namespace kvquant
