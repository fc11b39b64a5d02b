#pragma once
/// \file
/// Few combinations that hold every pair.

#include <array>
#include <cstddef>
#include <optional>
#include <set>
#include <vector>

namespace kvquant::test {

/// Rows with a choice for each factor, factor f having `choices[f]` of them: any two choices of any two factors meet in
/// some row. Greedy: a row starts from a pair that is missing and takes for each factor what adds most.
inline std::vector<std::vector<std::size_t>> pairwise(std::vector<std::size_t> const& choices) {
  using pair = std::array<std::size_t, 4>;  // factor, choice, a later factor, choice
  std::set<pair> missing;
  for (std::size_t f = 0; f < choices.size(); ++f)
    for (std::size_t g = f + 1; g < choices.size(); ++g)
      for (std::size_t a = 0; a < choices[f]; ++a)
        for (std::size_t b = 0; b < choices[g]; ++b) missing.insert({f, a, g, b});

  std::vector<std::vector<std::size_t>> rows;
  while (!missing.empty()) {
    std::vector<std::optional<std::size_t>> row(choices.size());
    auto const missing_with = [&](std::size_t f, std::size_t a) {
      std::set<pair> out;
      for (std::size_t g = 0; g < row.size(); ++g) {
        if (g == f || !row[g]) continue;
        pair const it = f < g ? pair{f, a, g, *row[g]} : pair{g, *row[g], f, a};
        if (missing.count(it) != 0) out.insert(it);
      }
      return out;
    };
    auto const [first, first_choice, second, second_choice] = *missing.begin();
    row[first] = first_choice;
    row[second] = second_choice;
    for (std::size_t f = 0; f < row.size(); ++f) {
      if (row[f]) continue;
      std::size_t best = rows.size() % choices[f];  // so that ties go around
      for (std::size_t a = 0; a < choices[f]; ++a)
        if (missing_with(f, a).size() > missing_with(f, best).size()) best = a;
      row[f] = best;
    }
    rows.emplace_back();
    for (std::size_t f = 0; f < row.size(); ++f) {
      rows.back().push_back(*row[f]);
      for (pair const& it : missing_with(f, *row[f])) missing.erase(it);
    }
  }
  return rows;
}

}  // namespace kvquant::test
