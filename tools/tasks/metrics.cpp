#include "tools/tasks/metrics.hpp"

#include <algorithm>
#include <cctype>
#include <utility>

#include "runtime/tokenizer/utf8.hpp"

namespace kvquant::tasks {

namespace {

bool is_punctuation(char c) { return std::ispunct(static_cast<unsigned char>(c)) != 0; }
bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

/// Of ASCII letters.
std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> words;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at;
    while (end < text.size() && !is_space(text[end])) ++end;
    if (end > at) words.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

std::vector<std::string> characters(std::string_view text) {
  std::vector<std::string> all;
  while (!text.empty()) {
    std::size_t const bytes = std::max<std::size_t>(runtime::utf8_length(text), 1);
    if (!is_space(text[0])) all.emplace_back(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return all;
}

/// What `token_f1` compares (after SQuAD's evaluation, arXiv 1606.05250).
std::vector<std::string> normalized_words(std::string_view text, bool by_character) {
  std::string plain = lower(text);
  std::erase_if(plain, is_punctuation);
  if (by_character) return characters(plain);
  auto words = split(plain);
  std::erase_if(words, [](std::string const& it) { return it == "a" || it == "an" || it == "the"; });
  return words;
}

double f1(double common, std::size_t found, std::size_t expected) {
  return common == 0 ? 0 : 2 * common / static_cast<double>(found + expected);
}

double token_f1(std::vector<std::string> found, std::vector<std::string> expected) {
  std::sort(found.begin(), found.end());
  std::sort(expected.begin(), expected.end());
  std::vector<std::string> common;
  std::set_intersection(found.begin(), found.end(), expected.begin(), expected.end(), std::back_inserter(common));
  return f1(static_cast<double>(common.size()), found.size(), expected.size());
}

double rouge_l(std::vector<std::string> const& found, std::vector<std::string> const& expected) {
  auto const common = longest_common_subsequence<std::string>(found, expected);
  return f1(static_cast<double>(common), found.size(), expected.size());
}

double classification(std::string_view answer, std::string const& right, std::vector<std::string> const& classes) {
  std::size_t named = 0;
  bool found = false;
  for (std::string const& it : classes) {
    if (answer.find(it) == answer.npos) continue;
    found = found || it == right;
    // A class whose name is part of the right one's is named with it.
    if (it == right || right.find(it) == right.npos) ++named;
  }
  return found ? 1 / static_cast<double>(named) : 0;
}

std::vector<std::string> numbers(std::string_view text) {
  std::vector<std::string> all(1);
  for (char const c : text) {
    if (c >= '0' && c <= '9')
      all.back() += c;
    else if (!all.back().empty())
      all.emplace_back();
  }
  if (all.back().empty()) all.pop_back();
  return all;
}

double number_share(std::string_view answer, std::string_view expected) {
  auto const found = numbers(answer), right = numbers(expected);
  if (found.empty() || right.empty()) return 0;
  return static_cast<double>(std::count(found.begin(), found.end(), right.back())) / static_cast<double>(found.size());
}

/// Models explain; code is what is no fence and no comment.
std::string_view first_line_of_code(std::string_view text) {
  while (!text.empty()) {
    std::size_t const end = std::min(text.find('\n'), text.size());
    std::string_view const line = text.substr(0, end);
    bool const code = line.find_first_not_of(" \t\r") != line.npos && line.find('`') == line.npos &&
                      line.find('#') == line.npos && line.find("//") == line.npos;
    if (code) return line;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return {};
}

double edit_similarity(std::string_view a, std::string_view b) {
  auto const common = longest_common_subsequence<char>(a, b);
  return f1(static_cast<double>(common), a.size(), b.size());
}

double score_one(metric kind, std::string_view answer, std::string const& right, expected_answer const& expected) {
  bool const by_character = expected.by_character;
  switch (kind) {
    case metric::match_all:
    case metric::match_any: return lower(answer).find(lower(right)) != std::string::npos ? 1 : 0;
    case metric::token_f1:
      return token_f1(normalized_words(answer, by_character), normalized_words(right, by_character));
    case metric::rouge_l:
      return by_character ? rouge_l(characters(answer), characters(right)) : rouge_l(split(answer), split(right));
    case metric::classification: return classification(answer, right, expected.classes);
    case metric::number: return number_share(answer, right);
    case metric::edit_similarity: return edit_similarity(first_line_of_code(answer), right);
  }
  return 0;
}

}  // namespace

std::map<std::string, metric> const& metric_names() {
  static std::map<std::string, metric> const names = {{"match-all", metric::match_all},
                                                      {"match-any", metric::match_any},
                                                      {"token-f1", metric::token_f1},
                                                      {"rouge-l", metric::rouge_l},
                                                      {"classification", metric::classification},
                                                      {"number", metric::number},
                                                      {"edit-similarity", metric::edit_similarity}};
  return names;
}

std::string const& name_of(metric kind) {
  auto const has = [kind](auto const& it) { return it.second == kind; };
  return std::find_if(metric_names().begin(), metric_names().end(), has)->first;
}

double score(metric kind, std::string_view answer, expected_answer const& expected) {
  double sum = 0, best = 0;
  for (std::string const& right : expected.answers) {
    double const one = score_one(kind, answer, right, expected);
    sum += one;
    best = std::max(best, one);
  }
  return kind == metric::match_all ? sum / static_cast<double>(expected.answers.size()) : best;
}

bool is_final(metric kind, double score) {
  return (kind == metric::match_all || kind == metric::match_any) && score == 1;
}

}  // namespace kvquant::tasks
