#pragma once
/// \file
/// What a cache keeps once for all sequences.

#include <cstddef>

#include "kvquant/quantize/spec.hpp"
#include "tools/plan/cache_format.hpp"

namespace kvquant::plan {

/// Of all layers, of keys and values in the same format: codebooks, channels' ranges and sensitivities, as the CPU
/// backend's cache reports them. Of `adaptive` with a table for eight channels.
std::size_t table_bytes(side_format const& format, model_shape const& shape);

}  // namespace kvquant::plan
