#pragma once
/// \file
/// How far a cache strays along a text that the model wrote with another.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "runtime/tokenizer.hpp"

namespace kvquant::tasks {

/// Of positions side by side.
struct drift_bucket {
  std::size_t first = 0, count = 0;
  double kl = 0, agreement = 0;  ///< means
};

struct drift {
  std::optional<std::size_t> first_divergence;  ///< none: as far as the text goes
  drift_bucket all;
  std::vector<drift_bucket> buckets;
};

/// `written`: the text; `chosen` what the cache would have had at each position behind the same tokens; `kl` how far it
/// is there. None is empty. Up to the first divergence this is what it would have written by itself.
inline drift drift_of(std::span<runtime::token_id const> written, std::span<runtime::token_id const> chosen,
                      std::span<double const> kl, std::size_t most_buckets) {
  auto const bucket = [&](std::size_t first, std::size_t count) {
    drift_bucket it{.first = first, .count = count};
    for (std::size_t i = first; i < first + count; ++i) {
      it.kl += kl[i];
      it.agreement += written[i] == chosen[i] ? 1 : 0;
    }
    it.kl /= static_cast<double>(count);
    it.agreement /= static_cast<double>(count);
    return it;
  };
  drift out{.first_divergence = std::nullopt, .all = bucket(0, written.size()), .buckets = {}};
  auto const differs = std::mismatch(written.begin(), written.end(), chosen.begin()).first;
  if (differs != written.end()) out.first_divergence = static_cast<std::size_t>(differs - written.begin());
  std::size_t const width = (written.size() + most_buckets - 1) / most_buckets;
  for (std::size_t first = 0; first < written.size(); first += width)
    out.buckets.push_back(bucket(first, std::min(width, written.size() - first)));
  return out;
}

}  // namespace kvquant::tasks
