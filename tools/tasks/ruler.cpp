#include "tools/tasks/ruler.hpp"

#include <array>
#include <utility>

#include "tools/tasks/hide.hpp"
#include "tools/tasks/ruler_tasks.hpp"

namespace kvquant::tasks {

namespace {

constexpr std::array<std::string_view, 12> names = {"niah-single-1",
                                                    "niah-single-2",
                                                    "niah-single-3",
                                                    "niah-multikey-1",
                                                    "niah-multikey-2",
                                                    "niah-multikey-3",
                                                    "niah-multivalue",
                                                    "niah-multiquery",
                                                    "vt",
                                                    "cwe",
                                                    "fwe",
                                                    "qa"};

}  // namespace

sample& ruler_request::add_to(sample_group& group, std::vector<std::string> answers, std::size_t most_tokens) const {
  sample it;
  it.task = task;
  it.length = length;
  it.index = group.size();
  it.expected.answers = std::move(answers);
  it.most_tokens = most_tokens;
  return group.emplace_back(std::move(it));
}

void ruler_request::fill(sample& it, std::function<question(std::size_t)> const& ask, std::size_t most_units) const {
  it.ask = ask(most_filler(maker, ask, prompt_room(it), it.task, most_units));
  it.prompt = maker.ids(it.ask);
}

std::span<std::string_view const> ruler_tasks() { return names; }

std::vector<sample_group> ruler_samples(prompt_maker const& maker, std::string_view task, sample_plan const& plan,
                                        std::span<document const> documents) {
  std::vector<sample_group> groups;
  for (std::size_t const length : plan.lengths) {
    ruler_request const request{maker, plan, std::string(task), length};
    if (task == "vt")
      groups.push_back(variable_tracking(request));
    else if (task == "cwe")
      groups.push_back(common_words(request));
    else if (task == "fwe")
      groups.push_back(frequent_words(request));
    else if (task == "qa")
      groups.push_back(questions_on_documents(request, documents));
    else
      groups.push_back(needles(request));
  }
  return groups;
}

}  // namespace kvquant::tasks
