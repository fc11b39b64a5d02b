#pragma once
/// \file
/// A number hidden in filler that has to be told (after arXiv 2305.16300; KVQuant, arXiv 2401.18079, table 4).

#include <vector>

#include "tools/tasks/sample.hpp"

namespace kvquant::tasks {

/// A group for each length and sample: one filler, the number at each depth. Without a text of the user's the filler is
/// a few sentences that repeat. Throws `bad_value` for a length that is too short.
std::vector<sample_group> passkey_samples(prompt_maker const& maker, sample_plan const& plan);

}  // namespace kvquant::tasks
