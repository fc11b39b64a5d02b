#pragma once
/// \file
/// How an answer is scored, from 0 to 1.

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvquant::tasks {

enum class metric {
  match_all,       ///< share of the expected strings that the answer holds, whatever the case
  match_any,       ///< whether it holds one of them
  token_f1,        ///< of words, without case, punctuation and articles; the best expected answer counts
  rouge_l,         ///< F1 of the longest common subsequence of words; the best expected answer counts
  classification,  ///< 1 / the number of classes that the answer names, if the right one is among them
  number,          ///< share of the numbers in the answer that are the last number of the expected one
  edit_similarity  ///< of the answer's first line of code: 1 − insertions and deletions / bytes of both
};

/// Each metric by the name that `--metric` takes.
std::map<std::string, metric> const& metric_names();
std::string const& name_of(metric kind);

/// What an answer is held against.
struct expected_answer {
  std::vector<std::string> answers;
  std::vector<std::string> classes{};  ///< of `classification`
  bool by_character = false;           ///< words are characters, as in Chinese
};

double score(metric kind, std::string_view answer, expected_answer const& expected);

/// A score that no more text can change.
bool is_final(metric kind, double score);

/// Length of the longest common subsequence: O(a · b) time, O(b) memory.
template <class T>
std::size_t longest_common_subsequence(std::span<T const> a, std::span<T const> b) {
  std::vector<std::size_t> best(b.size() + 1);  // of a's items so far with the first j of b
  for (T const& item : a) {
    std::size_t diagonal = 0;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      std::size_t const above = best[j];
      best[j] = item == b[j - 1] ? diagonal + 1 : (above > best[j - 1] ? above : best[j - 1]);
      diagonal = above;
    }
  }
  return best.back();
}

}  // namespace kvquant::tasks
