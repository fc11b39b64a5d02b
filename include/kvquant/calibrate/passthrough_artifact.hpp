#pragma once
/// \file
/// The artifact of a cache that does not quantize: what other formats are compared with. It needs no calibration.

#include <cstddef>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"

namespace kvquant {

/// Keys and values in binary16.
using passthrough_spec = spec<passthrough, passthrough>;

/// Every token is kept in binary16, in pages like those of any format. Throws `bad_shape` for shapes that cannot be.
inline artifact<passthrough_spec> make_passthrough_artifact(model_shape const& shape) {
  validate(shape);
  auto const channels = static_cast<std::size_t>(shape.kv_channels());
  std::vector<float> const no_sensitivity(channels);
  layer_artifact const layer{std::vector(channels, make_range(-1, 1)), {}, {}, no_sensitivity, no_sensitivity};
  artifact<passthrough_spec> it;
  it.info.spec = passthrough_spec::name();
  it.info.shape = shape;
  it.layers.assign(static_cast<std::size_t>(shape.layers), layer);
  return it;
}

}  // namespace kvquant
