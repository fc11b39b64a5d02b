#pragma once
/// \file
/// Samples that are answered together, and the room that they take.

#include <cstddef>
#include <vector>

#include "tools/tasks/sample.hpp"
#include "tools/tasks/tested_cache.hpp"

namespace kvquant::tasks {

/// The prompts of a group, of whose hidden states the last is wanted.
std::vector<prompt_tokens> prompts_of(sample_group const& group);

/// Consecutive samples of a group.
struct sample_batch {
  std::size_t first = 0, count = 0;
  std::size_t tokens = 0;  ///< that a cache has to hold: what all share once, and what each has of its own
};

/// At most 16 samples each. Where they share little, as many as have 16384 tokens of their own; one at least.
std::vector<sample_batch> batches_of(sample_group const& group);

}  // namespace kvquant::tasks
