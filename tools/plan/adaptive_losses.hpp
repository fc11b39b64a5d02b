#pragma once
/// \file
/// What `adaptive` is predicted to lose on one side of a layer, whatever its bits.

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "kvquant/calibrate/allocate.hpp"
#include "kvquant/calibrate/channel_widths.hpp"
#include "kvquant/calibrate/statistics.hpp"
#include "kvquant/quantize/spec.hpp"
#include "tools/plan/cache_format.hpp"

namespace kvquant::plan {

class adaptive_losses {
 public:
  /// The side's channels have histograms.
  adaptive_losses(side_statistics const& side, model_shape shape, bool is_key);

  /// Σ F (x − x̂)² with the best widths, and of each head the slots' share of elements that lose most left out.
  double of(side_format const& format) const;

 private:
  /// Values of a channel that are as good as equal.
  struct bin_loss {
    double priority = 0;  ///< by which slots are given: sensitivity · residual²
    double loss = 0;      ///< Σ F residual²
    double share = 0;     ///< of the channel's elements
  };
  using bins_by_width = std::array<std::vector<bin_loss>, most_channel_bits>;  // of 1 to 4 bits

  void add(channel_statistics const& channel, double sensitivity);
  double kept_by_slots(std::span<bin_loss const> bins, double elements) const;

  model_shape shape_;
  bool is_key_;
  std::vector<width_losses> by_width_;  // [kv_channels]
  std::vector<bins_by_width> bins_;     // [kv_channels]
};

}  // namespace kvquant::plan
