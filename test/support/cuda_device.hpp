#pragma once
/// \file
/// Tests that need a CUDA device.

#include <cstdlib>
#include <iostream>

#include "backends/cuda/supports.hpp"

namespace kvquant::test {

/// Ends the program, skipped, where there is none.
inline void skip_without_cuda_device() {
  if (cuda::missing_device().empty()) return;
  std::cout << "skipped: needs " << cuda::missing_device() << '\n';
  std::exit(77);
}

}  // namespace kvquant::test
