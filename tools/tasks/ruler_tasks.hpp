#pragma once
/// \file
/// Each of RULER's kinds: the samples of one length.

#include <algorithm>
#include <functional>
#include <span>
#include <string>

#include "tools/tasks/ruler.hpp"

namespace kvquant::tasks {

struct ruler_request {
  prompt_maker const& maker;
  sample_plan const& plan;
  std::string task;
  std::size_t length;

  random_source random(std::string_view of) const {
    return {plan.seed, task + "/" + std::to_string(length) + "/" + std::string(of)};
  }
  random_source random(std::size_t index) const { return random(std::to_string(index)); }

  /// The next sample of a group.
  sample& add_to(sample_group& group, std::vector<std::string> answers, std::size_t most_tokens) const;
  /// Gives a sample its prompt: what `ask` makes of as many units of filler as its length has room for.
  void fill(sample& it, std::function<question(std::size_t units)> const& ask,
            std::size_t most_units = no_most_filler) const;
};

sample_group needles(ruler_request const& request);
sample_group variable_tracking(ruler_request const& request);
sample_group common_words(ruler_request const& request);
sample_group frequent_words(ruler_request const& request);
sample_group questions_on_documents(ruler_request const& request, std::span<document const> documents);

}  // namespace kvquant::tasks
