#include "tools/tasks/batches.hpp"

#include "kvquant/cache/page.hpp"

namespace kvquant::tasks {

std::vector<prompt_tokens> prompts_of(sample_group const& group) {
  std::vector<prompt_tokens> prompts;
  for (sample const& it : group) prompts.push_back({it.prompt, it.prompt.size() - 1});
  return prompts;
}

std::vector<sample_batch> batches_of(sample_group const& group) {
  constexpr std::size_t most_samples = 16, most_tokens = 16384;
  auto const shared = shared_starts(prompts_of(group));
  std::vector<sample_batch> batches;
  std::size_t own_tokens = 0;  // of the last batch
  for (std::size_t i = 0; i < group.size(); ++i) {
    // A fork has a tail of its own, and copies a page at most.
    std::size_t const own = group[i].prompt.size() + group[i].most_tokens - shared[i] + 2 * page_tokens;
    if (batches.empty() || batches.back().count == most_samples || own_tokens + own > most_tokens) {
      batches.push_back({.first = i});
      own_tokens = 0;
    }
    own_tokens += own;
    ++batches.back().count;
    batches.back().tokens = shared[i] + own_tokens;
  }
  return batches;
}

}  // namespace kvquant::tasks
