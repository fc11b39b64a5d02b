#pragma once
/// \file
/// Contract programs run once for each set of instructions, named in the environment.

#include <cstdio>
#include <cstdlib>

#include "backends/cpu/isa.hpp"

namespace kvquant::contract {

/// Ends the program as skipped where the machine lacks the instructions that KVQUANT_ISA names.
inline void skip_without_chosen_isa() {
  try {
    cpu::chosen_isa();
  } catch (error const& missing) {
    constexpr int skipped = 77;  // as the build tool understands it
    std::puts(missing.what());
    std::exit(skipped);
  }
}

}  // namespace kvquant::contract
