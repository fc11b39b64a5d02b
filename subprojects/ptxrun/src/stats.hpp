#pragma once
#include "internal.hpp"
namespace ptxrun {
void write_stats(LaunchState& ls);    // appends one JSON object to the statistics file
void write_profile(LaunchState& ls);  // appends the hottest lines to the profile file
}  // namespace ptxrun
