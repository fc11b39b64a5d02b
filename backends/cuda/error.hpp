#pragma once
/// \file
/// Errors of the device.

#include <cuda_runtime_api.h>

#include "kvquant/core/error.hpp"

namespace kvquant::cuda {

/// Throws `device` with the call, and the code and its meaning, unless it went well.
inline void check(cudaError_t code, char const* call) {
  if (code == cudaSuccess) [[likely]]
    return;
  static_cast<void>(cudaGetLastError());  // what is reported here is not to be found again
  throw error{errc::device,
              text(call, ": ", cudaGetErrorName(code), " (", static_cast<int>(code), "): ", cudaGetErrorString(code))};
}

}  // namespace kvquant::cuda
