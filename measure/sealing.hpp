#pragma once
/// \file
/// Timing how a cache seals pages: the baseline and other formats in turn, on one thread.

#include <span>
#include <string>
#include <vector>

#include "measure/job.hpp"

namespace kvquant::measure {

struct sealing_result {
  std::string name;
  double gigabytes_per_second;  ///< of keys and values in binary16
  double ratio_to_f16;          ///< how many times faster than the baseline: median over the rounds
  double ratio_to_copy;         ///< of the speed at which one thread copies as much
  double error;                 ///< of keys and values, relative L2
};

/// Appends whole pages to one layer, at least 11 rounds and `seconds` of every format. Throws `bad_value` naming the
/// format that reads back further from its input than its bits explain.
std::vector<sealing_result> measure_sealing(model_shape const& shape, std::span<format_choice const> formats,
                                            double seconds);

}  // namespace kvquant::measure
