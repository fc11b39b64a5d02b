#pragma once
/// \file
/// Needles in a haystack.

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kvquant/core/error.hpp"
#include "tools/tasks/sample.hpp"

namespace kvquant::tasks {

struct needle {
  std::size_t before = 0;  ///< the sentence of the haystack that follows it
  std::string text;
};

/// The first sentences of a haystack with needles between them, in the order given where they stand together.
inline std::string hide(haystack const& in, std::size_t sentences, std::vector<needle> needles) {
  std::stable_sort(needles.begin(), needles.end(),
                   [](needle const& a, needle const& b) { return a.before < b.before; });
  std::vector<std::string> parts;
  auto next = needles.begin();
  for (std::size_t i = 0; i <= sentences; ++i) {
    for (; next != needles.end() && next->before <= i; ++next) parts.push_back(next->text);
    if (i < sentences) parts.push_back(in.sentence(i));
  }
  return join(parts, " ");
}

/// Tokens that a sample's prompt may have.
inline std::size_t prompt_room(sample const& it) {
  require(it.length > it.most_tokens, errc::bad_value, it.task, ": a length of ", it.length,
          ", expected more than the ", it.most_tokens, " tokens of an answer");
  return it.length - it.most_tokens;
}

/// A number that the haystack does not have.
inline std::string number_not_in(haystack const& in, random_source& random, std::size_t digits) {
  auto const has = [&](std::string const& number) {
    return std::any_of(in.sentences.begin(), in.sentences.end(),
                       [&](std::string const& it) { return it.find(number) != it.npos; });
  };
  std::string number = random_number(random, digits);
  while (has(number)) number = random_number(random, digits);
  return number;
}

}  // namespace kvquant::tasks
