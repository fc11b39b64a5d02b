#pragma once
/// \file
/// What formats are predicted to cost a model, layer by layer, by what calibration has seen of it.

#include <filesystem>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/calibrate/statistics_io.hpp"
#include "kvquant/core/executor.hpp"
#include "kvquant/quantize/spec.hpp"
#include "tools/plan/cache_format.hpp"

namespace kvquant::plan {

/// One side in one format. [layers] ½ Σ F Δ² over the elements of a calibration window, F their squared gradients: the
/// second-order loss with the empirical Fisher information in place of the Hessian, up to a factor that is the same for
/// all formats.
struct side_losses {
  side_format format;
  std::vector<double> by_layer;

  double total() const;
};

struct loss_table {
  model_shape shape;
  provenance origin;
  std::vector<side_losses> keys, values;
  std::vector<cache_format> makeable;  ///< what `calibrate` makes of all layers, or has made
};

/// Whatever the statistics can tell: `nuq` of 2 to 4 bits with the outliers that they were gathered without, and, where
/// each channel has a histogram, `adaptive` of 1.5 to 4 bits, without slots and with some. `adaptive` is predicted with
/// levels of a channel's own before rounding, and slots as if an element's gradient did not depend on its value; `nuq`
/// loses nothing in outliers. Throws `bad_value` for statistics without gradients or of keys after RoPE.
loss_table losses_of(saved_statistics const& from, executor_ref executor);

/// The losses of an artifact's own codebooks; what its slots keep of values within the ranges is not foreseen. Throws
/// `bad_value` for artifacts that were not fitted by Fisher weights, or of keys after RoPE.
loss_table losses_of(std::filesystem::path const& path);

/// Adds what `more` knows, in place of equal formats. Throws `bad_format` naming what differs unless both come from the
/// same model and calibration.
void merge(loss_table& to, loss_table more);

}  // namespace kvquant::plan
