#pragma once
/// \file
/// The library in one include: all that needs the standard library alone. Beside it stand
/// `kvquant/calibrate/artifact_io.hpp` and `statistics_io.hpp` (nlohmann/json), `kvquant/cache/cache_io.hpp` and
/// `kvquant/engine.hpp` (xxHash too), and `kvquant/reference/` (Eigen).

#include "kvquant/attend/attend.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/cache/row_major_layout.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/calibrator.hpp"
#include "kvquant/calibrate/fit.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/executor.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/format/formats.hpp"
#include "kvquant/format/int8_grid.hpp"
#include "kvquant/pack/bit_pack.hpp"
#include "kvquant/quantize/sides.hpp"
#include "kvquant/quantize/spec.hpp"
#include "kvquant/rope/rope.hpp"
