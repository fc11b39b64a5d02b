#pragma once
/// \file
/// Tasks after the descriptions in RULER (arXiv 2404.06654, section 3 and appendix B), in words of our own.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/tasks/sample.hpp"

namespace kvquant::tasks {

/// A text of the user's with a question that it answers.
struct document {
  std::string text, question;
  std::vector<std::string> answers;
};

/// niah-single-1 to -3, niah-multikey-1 to -3, niah-multivalue, niah-multiquery, vt, cwe, fwe, qa.
std::span<std::string_view const> ruler_tasks();

/// A group for each length. `documents` are for qa alone. Throws `bad_value` for a length that is too short, and for qa
/// if the documents do not fill it.
std::vector<sample_group> ruler_samples(prompt_maker const& maker, std::string_view task, sample_plan const& plan,
                                        std::span<document const> documents = {});

}  // namespace kvquant::tasks
