#pragma once
/// \file
/// Choosing the next token from a model's scores.

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "runtime/tokenizer.hpp"

namespace kvquant::runtime {

struct sampling_options {
  double temperature = 0;  ///< 0: always the likeliest token
  int top_k = 0;           ///< only so many likeliest tokens; 0: all
  double top_p = 1;        ///< only the likeliest tokens that together have this probability
  std::uint64_t seed = 0;
};

/// The same scores and seed give the same tokens on every machine, but for the rounding of `exp`.
class sampler {
 public:
  /// Throws `bad_value` naming the option that cannot be.
  explicit sampler(sampling_options const& options);

  /// `scores` [vocabulary]; of equal ones the lower id comes first. Throws `bad_value` if there is none, or a NaN.
  token_id next(std::span<float const> scores);

 private:
  struct candidate {
    float score;
    token_id id;
    double probability;
  };

  sampling_options options_;
  std::mt19937_64 random_;
  std::vector<candidate> candidates_;
};

}  // namespace kvquant::runtime
