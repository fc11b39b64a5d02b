#pragma once
/// \file
/// Samples that are answered together, and the room that they take.

#include <cstddef>
#include <vector>

#include "tools/tasks/sample.hpp"

namespace kvquant::tasks {

/// Consecutive samples of a group.
struct sample_batch {
  std::size_t first = 0, count = 0;
  std::size_t tokens = 0;  ///< that a cache has to hold: what all share once, and what each has of its own
};

/// At most 16 samples each. Where they share little, as many as have 16384 tokens of their own; one at least.
std::vector<sample_batch> batches_of(sample_group const& group);

}  // namespace kvquant::tasks
