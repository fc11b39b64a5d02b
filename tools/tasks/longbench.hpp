#pragma once
/// \file
/// Questions in the format of LongBench (arXiv 2308.14508): a JSON object a line.

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/tasks/ruler.hpp"
#include "tools/tasks/sample.hpp"

namespace kvquant::tasks {

/// A line of a file.
struct longbench_record {
  std::string context, input, dataset, language, id;
  std::vector<std::string> answers, classes;
};

/// `name` is what errors call the text. Throws `bad_file` naming the line that is no such object, or lacks a member.
std::vector<longbench_record> parse_longbench(std::string_view content, std::string_view name);
/// The same with "context", "question" and "answers" alone.
std::vector<document> parse_documents(std::string_view content, std::string_view name);

/// What is the same for all questions of a dataset.
struct dataset_rules {
  metric kind = metric::token_f1;
  std::size_t most_tokens = 128;
  std::string form = "{context}\n\nQuestion: {input}\nAnswer:";  ///< of the prompt
  bool plain = false;                                            ///< goes without a chat template
  bool first_line = false;                                       ///< of the answer is all that counts
};

/// Those of LongBench's 21 datasets, "_e" behind the name or not; none for another name.
std::optional<dataset_rules> rules_of(std::string_view dataset);

/// In place of what `rules_of` says.
struct longbench_choices {
  std::optional<metric> kind{};
  std::optional<std::string> form{};
  std::optional<std::size_t> most_tokens{};
};

/// Questions on one text that stand together are a group. Prompts that are too long lose their middle. `samples` of the
/// plan: of each dataset at most, 0 for all.
std::vector<sample_group> longbench_samples(prompt_maker const& maker, std::span<longbench_record const> records,
                                            sample_plan const& plan, longbench_choices const& choices = {});

}  // namespace kvquant::tasks
