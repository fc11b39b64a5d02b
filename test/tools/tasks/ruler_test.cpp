#include "tools/tasks/ruler.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <sstream>

#include "test/support/thrown.hpp"
#include "test/tools/tasks/generated.hpp"

namespace kvquant::tasks {
namespace {

using test::byte_maker, test::count, test::error_of, test::says;

std::vector<document> documents() {
  std::vector<document> all;
  for (int i = 0; i < 60; ++i) {
    std::string const number = std::to_string(i);
    all.push_back({"House " + number + " is painted in colour-" + number + "x, which everybody likes a lot.",
                   "Which colour is house " + number + "?",
                   {"colour-" + number + "x"}});
  }
  return all;
}

sample_group samples(byte_maker const& bytes, std::string_view task, std::size_t length = 4000,
                     std::uint64_t seed = 1) {
  auto const all = documents();
  auto groups = ruler_samples(bytes.maker, task, {.lengths = {length}, .samples = 4, .seed = seed}, all);
  REQUIRE(groups.size() == 1);
  REQUIRE(groups[0].size() == 4);
  return std::move(groups[0]);
}

/// The last text, after examples: its haystack without the question.
std::string last_haystack(std::string const& text, std::string_view question) {
  std::string const all = text.substr(0, text.rfind(question));
  std::size_t const start = all.rfind("\n\n", all.size() - 3);
  return all.substr(start == all.npos ? 0 : start);
}

TEST_CASE("RULER: lengths are met and samples depend on the seed alone") {
  byte_maker const bytes;
  for (std::string_view const task : ruler_tasks()) {
    INFO(task);
    auto const once = samples(bytes, task), again = samples(bytes, task), other = samples(bytes, task, 4000, 2);
    CHECK(test::same_prompts(once, again));
    CHECK_FALSE(test::same_prompts(once, other));
    for (sample const& it : once) {
      CHECK(it.prompt.size() + it.most_tokens <= it.length);
      CHECK(it.prompt.size() + it.most_tokens + 120 > it.length);  // a unit of filler
      CHECK(bytes.text(it).ends_with(it.ask.answer_start));
    }
  }
}

TEST_CASE("RULER: needles hold each answer once") {
  byte_maker const bytes;
  std::map<std::string, std::size_t> const answers = {
      {"niah-single-1", 1},   {"niah-single-2", 1},   {"niah-single-3", 1},   {"niah-multikey-1", 1},
      {"niah-multikey-2", 1}, {"niah-multikey-3", 1}, {"niah-multivalue", 4}, {"niah-multiquery", 4}};
  for (auto const& [task, expected] : answers)
    for (sample const& it : samples(bytes, task)) {
      INFO(it.id());
      std::string const text = bytes.text(it);
      REQUIRE(it.expected.answers.size() == expected);
      for (std::string const& answer : it.expected.answers) {
        CHECK(count(text, answer) == 1);
        CHECK(answer.size() == (task.ends_with("3") ? 36u : 7u));
      }
    }
}

TEST_CASE("RULER: the key that is asked for has the answer, others have theirs") {
  byte_maker const bytes;
  for (sample const& it : samples(bytes, "niah-multikey-1")) {
    std::string const text = bytes.text(it);
    CHECK(count(text, "The number kept for ") == 4 + 1);  // hidden, and the start of the answer
    std::string const start = it.ask.answer_start;
    CHECK(count(text, start + " " + it.expected.answers[0] + ".") == 1);
  }
  for (sample const& it : samples(bytes, "niah-multikey-2"))
    CHECK(count(bytes.text(it), "The number kept for ") > 50);  // nothing but needles
  for (sample const& it : samples(bytes, "niah-multivalue")) {
    std::string const key = it.ask.answer_start.substr(21, it.ask.answer_start.size() - 21 - 4);
    CHECK(count(bytes.text(it), "The number kept for " + key + " is ") == 4);
  }
}

TEST_CASE("RULER: the later a sample's first needle, the more it shares") {
  byte_maker const bytes;
  auto const group = samples(bytes, "niah-single-1");
  std::vector<std::size_t> places;
  for (sample const& it : group) places.push_back(bytes.text(it).find(it.expected.answers[0]));
  CHECK(std::is_sorted(places.begin(), places.end()));
  CHECK(common_start(group[2].prompt, group[3].prompt) + 100 > places[2]);
}

TEST_CASE("RULER: a chain of variables leads to the value in order") {
  byte_maker const bytes;
  for (sample const& it : samples(bytes, "vt")) {
    auto const& names = it.expected.answers;
    REQUIRE(names.size() == 5);
    std::string const text = bytes.text(it);
    std::string const value = it.ask.answer_start.substr(std::string("The variables with the value ").size(), 5);
    std::size_t at = text.find("VAR " + names[0] + " = " + value + ".");
    CHECK(at != text.npos);
    for (std::size_t i = 1; i < names.size(); ++i) {
      std::size_t const next = text.find("VAR " + names[i] + " = VAR " + names[i - 1] + ".");
      CHECK((next != text.npos && next > at));
      at = next;
    }
  }
}

std::map<std::string, int> counted(std::string const& text) {
  std::map<std::string, int> times;
  std::istringstream in(text);
  for (std::string word; in >> word;) ++times[word];
  return times;
}

TEST_CASE("RULER: ten words are common, the others are not") {
  byte_maker const bytes;
  std::size_t const length = GENERATE(as<std::size_t>(), 3500, 8000);
  for (sample const& it : samples(bytes, "cwe", length)) {
    auto times = counted(last_haystack(bytes.text(it), "\n\nWhich ten words"));
    int const common = length < 4096 ? 10 : 30;
    REQUIRE(it.expected.answers.size() == 10);
    for (std::string const& word : it.expected.answers) {
      CHECK(times[word] == common);
      times.erase(word);
    }
    std::erase_if(times, [](auto const& word) { return word.first.ends_with('.'); });  // numbers of the list
    CHECK(times.size() > 5);
    for (auto const& [word, often] : times) CHECK(often == common / 10);
    CHECK(it.chance == Approx(10.0 / static_cast<double>(10 + times.size())));
  }
}

TEST_CASE("RULER: frequent words follow Zipf's law behind the dots") {
  byte_maker const bytes;
  for (sample const& it : samples(bytes, "fwe")) {
    auto times = counted(last_haystack(bytes.text(it), "\n\nWhich three words"));
    REQUIRE(it.expected.answers.size() == 3);
    int const first = times[it.expected.answers[0]], second = times[it.expected.answers[1]],
              third = times[it.expected.answers[2]];
    CHECK(times["..."] == Approx(4 * first).margin(4));
    CHECK((first > second && second > third));
    for (std::string const& word : it.expected.answers) times.erase(word);
    times.erase("...");
    for (auto const& [word, often] : times) CHECK(often < third);
    CHECK(it.chance == Approx(3.0 / static_cast<double>(3 + times.size())));
  }
}

TEST_CASE("RULER: the document that answers is among others") {
  byte_maker const bytes;
  auto const group = samples(bytes, "qa");
  for (sample const& it : group) {
    std::string const text = bytes.text(it);
    CHECK(count(text, it.expected.answers[0]) == 1);
    CHECK(count(text, "Document ") > 30);
    CHECK(count(text, documents()[it.index].question) == 1);
    CHECK(it.kind == metric::match_any);
  }
  auto const refused = [&](std::vector<document> const& all) {
    return error_of([&] { ruler_samples(bytes.maker, "qa", {.lengths = {60000}}, all); }).text;
  };
  CHECK_THAT(refused({}), says("qa: no documents"));
  CHECK_THAT(refused(documents()), says("qa: the documents make a prompt of "));
}

}  // namespace
}  // namespace kvquant::tasks
