#include "tools/tasks/metrics.hpp"

#include <catch2/catch.hpp>

namespace kvquant::tasks {
namespace {

double scored(metric kind, std::string_view answer, std::vector<std::string> answers,
              std::vector<std::string> classes = {}) {
  return score(kind, answer, {std::move(answers), std::move(classes)});
}

TEST_CASE("matching all is the share that is there, matching any whether one is") {
  CHECK(scored(metric::match_all, "They are 12 and ABC.", {"12", "abc", "7", "8"}) == 0.5);
  CHECK(scored(metric::match_any, "They are 12.", {"7", "12"}) == 1);
  CHECK(scored(metric::match_any, "They are 12.", {"7", "8"}) == 0);
  CHECK(is_final(metric::match_all, 1));
  CHECK_FALSE(is_final(metric::match_all, 0.5));
  CHECK_FALSE(is_final(metric::token_f1, 1));
}

TEST_CASE("F1 of words without case, punctuation and articles") {
  CHECK(scored(metric::token_f1, "The Cat, a dog!", {"cat dog"}) == 1);
  // cat cat dog | cat dog bird: two in common, as often as in both
  CHECK(scored(metric::token_f1, "cat cat dog", {"cat dog bird"}) == Approx(2.0 * 2 / 6));
  CHECK(scored(metric::token_f1, "cat", {"bird", "cat dog"}) == Approx(2.0 / 3));  // the best of both
  CHECK(scored(metric::token_f1, "", {"cat"}) == 0);
}

TEST_CASE("F1 by character, for languages without spaces") {
  CHECK(score(metric::token_f1, "北京市", {{"北京"}, {}, true}) == Approx(2.0 * 2 / 5));
  CHECK(score(metric::rouge_l, "京北", {{"北京"}, {}, true}) == Approx(0.5));
}

TEST_CASE("ROUGE-L is F1 of the longest common subsequence") {
  // a c d e of 5 and 6 words
  CHECK(scored(metric::rouge_l, "a b c d e", {"x a c y d e"}) == Approx(2.0 * 4 / 11));
  CHECK(scored(metric::rouge_l, "e d c b a", {"a b c d e"}) == Approx(2.0 * 1 / 10));
}

TEST_CASE("the longest common subsequence is exact") {
  auto const lcs = [](std::string_view a, std::string_view b) { return longest_common_subsequence<char>(a, b); };
  CHECK(lcs("", "abc") == 0);
  CHECK(lcs("abcbdab", "bdcaba") == 4);  // Cormen et al., section 15.4
  CHECK(lcs("aaaa", "aa") == 2);
  CHECK(lcs("accggtcgagtgcgcggaagccggccgaa", "gtcgttcggaatgccgttgctctgtaaa") == 20);
}

TEST_CASE("a class is shared with others that are named too") {
  std::vector<std::string> const classes = {"Person", "City", "City in France"};
  CHECK(scored(metric::classification, "It is a Person", {"Person"}, classes) == 1);
  CHECK(scored(metric::classification, "Person or City", {"Person"}, classes) == 0.5);
  CHECK(scored(metric::classification, "City", {"Person"}, classes) == 0);
  // The name of another that is part of the right one's does not count.
  CHECK(scored(metric::classification, "City in France", {"City in France"}, classes) == 1);
}

TEST_CASE("numbers are held against the last one of what is expected") {
  CHECK(scored(metric::number, "Paragraph 7", {"Paragraph 7"}) == 1);
  CHECK(scored(metric::number, "7, or 8", {"Paragraph 7"}) == 0.5);
  CHECK(scored(metric::number, "seven", {"7"}) == 0);
}

TEST_CASE("edit similarity is of the first line of code") {
  CHECK(scored(metric::edit_similarity, "\n```cpp\n// adds\nreturn a;\nx", {"return a;"}) == 1);
  CHECK(scored(metric::edit_similarity, "abcd", {"abxd"}) == Approx(2.0 * 3 / 8));
  CHECK(scored(metric::edit_similarity, "# nothing", {"abxd"}) == 0);
}

TEST_CASE("metrics have names") {
  for (auto const& [name, kind] : metric_names()) CHECK(name_of(kind) == name);
}

}  // namespace
}  // namespace kvquant::tasks
