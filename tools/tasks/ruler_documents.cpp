#include <algorithm>

#include "kvquant/core/error.hpp"
#include "tools/tasks/hide.hpp"
#include "tools/tasks/ruler_tasks.hpp"

namespace kvquant::tasks {

namespace {

std::string numbered(std::vector<document const*> const& documents) {
  std::string all;
  for (std::size_t i = 0; i < documents.size(); ++i)
    all += "Document " + std::to_string(i + 1) + ":\n" + documents[i]->text + "\n\n";
  return all;
}

}  // namespace

sample_group questions_on_documents(ruler_request const& request, std::span<document const> documents) {
  require(!documents.empty(), errc::bad_value, "qa: no documents, expected some (--documents)");
  sample_group group;
  for (std::size_t index = 0; index < request.plan.samples; ++index) {
    random_source random = request.random(index);
    document const& right = documents[index % documents.size()];
    std::vector<document const*> others;
    for (document const& it : documents)
      if (it.text != right.text) others.push_back(&it);
    random.shuffle(others);
    std::size_t const place = random.below(1000);  // thousandths
    auto const ask = [&](std::size_t units) {
      std::vector<document const*> shown(others.begin(), others.begin() + static_cast<std::ptrdiff_t>(units));
      shown.insert(shown.begin() + static_cast<std::ptrdiff_t>((units + 1) * place / 1000), &right);
      return question{.text = "Answer the question from these documents with a few words and nothing else.\n\n" +
                              numbered(shown) + "Question: " + right.question,
                      .answer_start = "Answer:"};
    };
    sample& it = request.add_to(group, right.answers, 32);
    it.kind = metric::match_any;
    request.fill(it, ask, others.size());
    std::size_t const tokens = it.prompt.size(), room = prompt_room(it);
    require(tokens >= room / 2, errc::bad_value, "qa: the documents make a prompt of ", tokens,
            " tokens, expected about ", room, " for a length of ", request.length);
  }
  return group;
}

}  // namespace kvquant::tasks
