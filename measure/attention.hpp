#pragma once
/// \file
/// Timing attention: the baseline and other formats in turn, on the same tokens.

#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "measure/attention_target.hpp"
#include "measure/job.hpp"

namespace kvquant::measure {

struct attention_options {
  double seconds = 0.3;     ///< of every format, at least
  std::size_t rounds = 11;  ///< at least
  /// Bytes that the layers of a case hold at least; the target's `cold_bytes` where nothing is said.
  std::optional<std::size_t> working_set = {};
  /// Of all formats together, after which three rounds are enough.
  double most_seconds = std::numeric_limits<double>::infinity();
};

struct attention_result {
  std::string name;  ///< of the job and the format
  format_choice format;
  double seconds_per_call;    ///< median
  double ns_per_token_layer;  ///< of one token of one sequence
  std::size_t bytes;          ///< of one call
  double gigabytes_per_second;
  double share_of_bandwidth;  ///< of what the target reads
  double ratio_to_f16;        ///< how many times faster than the baseline: median over the rounds
  double error;               ///< relative L2 against the reference
};

struct attention_results {
  std::vector<attention_result> results;  ///< of the baseline, then of each format
  std::string skipped;                    ///< why there are none
};

/// Checks each format, then times them. Skips what needs more than 60 % of the memory that is free; throws `bad_value`
/// naming the case that differs from the reference.
attention_results measure_attention(job const& what, std::span<format_choice const> formats,
                                    attention_options const& options, attention_target const& on);

}  // namespace kvquant::measure
