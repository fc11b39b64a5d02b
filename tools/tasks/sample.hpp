#pragma once
/// \file
/// One question to a model, and what its answer is held against.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/tasks/metrics.hpp"
#include "tools/tasks/prompt.hpp"
#include "tools/tasks/prose.hpp"

namespace kvquant::tasks {

struct sample {
  std::string task;  ///< "passkey", one of RULER's, a dataset
  std::size_t length = 0;
  std::optional<int> depth{};  ///< of the needle, percent
  std::size_t index = 0;
  question ask{};
  std::vector<runtime::token_id> prompt{};
  std::vector<runtime::token_id> told{};  ///< the prompt with the right answer behind it; of passkey alone
  metric kind = metric::match_all;
  expected_answer expected{};
  bool first_line = false;  ///< of the answer is all that counts
  std::size_t most_tokens = 0;
  double chance = 0;  ///< score of one who knows the form of the answer alone

  std::string id() const {
    std::string const where = depth ? "/" + std::to_string(*depth) : "";
    return task + "/" + std::to_string(length) + where + "/" + std::to_string(index);
  }
};

/// In an order in which each has as much as possible in common with all that follow.
using sample_group = std::vector<sample>;

/// What samples are made of.
struct sample_plan {
  std::vector<std::size_t> lengths;  ///< tokens, those of the answer included
  std::size_t samples = 1;           ///< of each kind and length (and depth)
  std::uint64_t seed = 0;
  std::vector<int> depths{};            ///< percent, rising
  std::optional<haystack> filler = {};  ///< a text of the user's to hide needles in
};

}  // namespace kvquant::tasks
