#include <algorithm>
#include <set>
#include <utility>

#include "tools/tasks/hide.hpp"
#include "tools/tasks/ruler_tasks.hpp"

namespace kvquant::tasks {

namespace {

/// Variables that take one another's value, the first a number.
struct chain {
  std::vector<std::string> names;
  std::string value;
  std::vector<std::size_t> places;  ///< thousandths of the haystack, rising

  static constexpr std::size_t hops = 4, digits = 5;

  explicit chain(random_source& random) : value(random_number(random, digits)) {
    std::set<std::string> taken;
    while (names.size() < hops + 1)
      if (auto name = random_characters(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", 5); taken.insert(name).second)
        names.push_back(std::move(name));
    while (places.size() < names.size()) places.push_back(random.below(1001));
    std::sort(places.begin(), places.end());
  }

  std::string asked(haystack const& filler, std::size_t sentences) const {
    std::vector<needle> assignments;
    for (std::size_t i = 0; i < names.size(); ++i)
      assignments.push_back(
          {sentences * places[i] / 1000, "VAR " + names[i] + " = " + (i == 0 ? value : "VAR " + names[i - 1]) + "."});
    return hide(filler, sentences, assignments) + "\n\nWhich variables have the value " + value +
           ", by themselves or through others? There are five.";
  }
  std::string answer_start() const { return "The variables with the value " + value + " are"; }
  std::string answered() const { return answer_start() + " " + join(names, ", ") + "."; }
};

}  // namespace

sample_group variable_tracking(ruler_request const& request) {
  sample_group group;
  for (std::size_t index = 0; index < request.plan.samples; ++index) {
    random_source random = request.random(index);
    haystack const filler = repeated_sentences(random);
    chain const example(random), asked(random);
    std::string const introduction = "Variables are given values somewhere in each text. Keep track of them.\n\n" +
                                     example.asked(filler, 5) + " " + example.answered() + "\n\n";
    sample& it = request.add_to(group, asked.names, 30);
    request.fill(it, [&](std::size_t units) {
      return question{.text = introduction + asked.asked(filler, units), .answer_start = asked.answer_start()};
    });
  }
  return group;
}

}  // namespace kvquant::tasks
