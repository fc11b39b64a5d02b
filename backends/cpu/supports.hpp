#pragma once
/// \file
/// What attention on a CPU asks of a model, whatever the instructions.

#include "kvquant/attend/backend.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/error.hpp"

namespace kvquant::cpu {

/// What cannot be done with an artifact's model and datatypes.
inline support supports_model(artifact_info const& info) {
  int const d = info.shape.head_dim;
  if (d < 16 || d > 256 || d % 16 != 0) return {text("head_dim ", d, ", expected a multiple of 16 up to 256")};
  if (info.keys != key_space::pre_rope) return {"keys quantized after RoPE, expected keys before RoPE"};
  return {};
}

}  // namespace kvquant::cpu
