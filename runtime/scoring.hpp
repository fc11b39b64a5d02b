#pragma once
/// \file
/// What predictions come to: losses, and how far they are from those of another cache.

#include <cstdint>
#include <span>
#include <vector>

#include "kvquant/core/view.hpp"
#include "runtime/model.hpp"

namespace kvquant::runtime {

/// Of one row (one kind of cache), per prediction.
struct token_scores {
  std::vector<double> nll;                ///< −log p(target), nats
  std::vector<double> kl;                 ///< KL(first row ‖ this row), nats
  std::vector<std::uint8_t> top1_agrees;  ///< whether the likeliest token is the first row's
};

/// Scores rows of hidden states, each [predictions, hidden], for the same targets; rows[0] is what the others are
/// compared with. Computed in slabs of tokens: [predictions, vocabulary] never exists.
std::vector<token_scores> score_rows(model const& m, std::span<view2d<float const> const> rows,
                                     std::span<token_id const> targets);

/// −log p(target) in nats for each row of hidden states.
std::vector<double> negative_log_likelihood(model const& m, view2d<float const> hidden,
                                            std::span<token_id const> targets);

}  // namespace kvquant::runtime
