#pragma once
/// \file
/// Any simulated cache with the window of ours: sinks exact, pages quantized when they are complete, the rest exact.

#include <cstddef>
#include <memory>
#include <string>

#include "runtime/simulation/simulator.hpp"

namespace kvquant::runtime {

/// What a cache keeps exact, beside the page that is being filled.
struct deployed_window {
  std::size_t sinks = 1;
  std::size_t recent_pages = 0;
};

/// `inner` quantizes whole pages behind the sinks, and is not told of other tokens. A window of its own (KIVI) gives
/// way to this one.
std::unique_ptr<simulator> simulate_deployed(std::unique_ptr<simulator> inner, deployed_window window,
                                             std::string name);

}  // namespace kvquant::runtime
