#include <algorithm>
#include <cmath>
#include <utility>

#include "tools/tasks/ruler_tasks.hpp"

namespace kvquant::tasks {

namespace {

/// Each word as often as it says, in any order, as a numbered list.
std::string word_list(std::vector<std::pair<std::string, std::size_t>> const& words, random_source& random) {
  std::vector<std::string> all;
  for (auto const& [word, times] : words) all.insert(all.end(), times, word);
  random.shuffle(all);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = std::to_string(i + 1) + ". " + all[i];
  return join(all, " ");
}

constexpr std::size_t common_count = 10;

/// The first `common_count` words are the common ones.
std::string common_word_question(std::vector<std::string> const& words, std::size_t common, std::size_t uncommon,
                                 random_source random) {
  std::vector<std::pair<std::string, std::size_t>> counted;
  for (std::size_t i = 0; i < words.size(); ++i) counted.emplace_back(words[i], i < common_count ? common : uncommon);
  return word_list(counted, random) + "\n\nWhich ten words are the most common in this list?";
}

constexpr std::string_view common_words_answer = "The ten most common words are:";

/// How often the word of rank r = 1, 2, … comes in a text of `total` words, by Zipf's law r^−2 (ζ(2) = π² / 6).
std::vector<std::size_t> frequencies(std::size_t total) {
  constexpr double zeta_2 = 1.6449340668482264;
  std::vector<std::size_t> times;
  for (double rank = 1;; ++rank) {
    auto const count = static_cast<std::size_t>(std::lround(static_cast<double>(total) / (rank * rank * zeta_2)));
    if (count == 0) return times;
    times.push_back(count);
  }
}

constexpr std::size_t frequent_count = 3;

}  // namespace

sample_group common_words(ruler_request const& request) {
  // Short lists have no room for thirty times ten words.
  std::size_t const common = request.length < 4096 ? 10 : 30, uncommon = common / 10;
  sample_group group;
  for (std::size_t index = 0; index < request.plan.samples; ++index) {
    random_source random = request.random(index);
    std::size_t const most = request.length / (2 * uncommon) + 2 * common_count;
    auto const words = distinct_words(random, most + 2 * common_count);
    std::vector<std::string> const shown(words.end() - 2 * common_count, words.end());
    random_source const order = random;
    std::vector<std::string> const shown_common(shown.begin(), shown.begin() + common_count);
    std::string const introduction = "Each list holds some words more often than others.\n\n" +
                                     common_word_question(shown, 3, 1, order) + " " + std::string(common_words_answer) +
                                     " " + join(shown_common, ", ") + ".\n\n";
    std::size_t distinct = 0;
    auto const ask = [&](std::size_t units) {
      distinct = std::min(common_count + units, most);
      std::vector<std::string> const used(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(distinct));
      return question{.text = introduction + common_word_question(used, common, uncommon, order),
                      .answer_start = std::string(common_words_answer)};
    };
    sample& it = request.add_to(group, {words.begin(), words.begin() + common_count}, 120);
    request.fill(it, ask);
    it.chance = static_cast<double>(common_count) / static_cast<double>(distinct);
  }
  return group;
}

sample_group frequent_words(ruler_request const& request) {
  sample_group group;
  constexpr std::size_t least_words = 60;  // that the first three differ in number
  for (std::size_t index = 0; index < request.plan.samples; ++index) {
    random_source random = request.random(index);
    auto const words = coded_words(random, frequencies(request.length).size());
    std::size_t distinct = 0;
    auto const ask = [&](std::size_t units) {
      std::vector<std::string> text;
      auto const times = frequencies(least_words + units);
      distinct = std::min(times.size() - 1, words.size());
      // The most frequent is dots, which mean nothing.
      text.insert(text.end(), times[0], "...");
      for (std::size_t i = 0; i < distinct; ++i) text.insert(text.end(), times[i + 1], words[i]);
      random_source order = random;
      order.shuffle(text);
      return question{.text = "This is a text in code. Dots mean nothing.\n\n" + join(text, " ") +
                              "\n\nWhich three words of it are the most frequent?",
                      .answer_start = "The three most frequent words are:"};
    };
    sample& it = request.add_to(group, {words.begin(), words.begin() + frequent_count}, 50);
    request.fill(it, ask);
    it.chance = static_cast<double>(frequent_count) / static_cast<double>(distinct);
  }
  return group;
}

}  // namespace kvquant::tasks
