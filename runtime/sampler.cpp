#include "runtime/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kvquant/core/error.hpp"

namespace kvquant::runtime {

sampler::sampler(sampling_options const& options) : options_(options), random_(options.seed) {
  require(std::isfinite(options.temperature) && options.temperature >= 0, errc::bad_value, "sampler: temperature is ",
          options.temperature, ", expected a finite number, 0 or more");
  require(options.top_k >= 0, errc::bad_value, "sampler: top_k is ", options.top_k, ", expected 0 or more");
  require(options.top_p > 0 && options.top_p <= 1, errc::bad_value, "sampler: top_p is ", options.top_p,
          ", expected above 0 and at most 1");
}

token_id sampler::next(std::span<float const> scores) {
  require(!scores.empty() && std::none_of(scores.begin(), scores.end(), [](float x) { return std::isnan(x); }),
          errc::bad_value, "sampler: no scores, or one that is no number");
  if (options_.temperature == 0)
    return static_cast<token_id>(std::max_element(scores.begin(), scores.end()) - scores.begin());

  candidates_.clear();
  for (std::size_t id = 0; id < scores.size(); ++id) candidates_.push_back({scores[id], static_cast<token_id>(id), 0});
  auto const likelier = [](candidate const& a, candidate const& b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
  };
  if (options_.top_k > 0 && static_cast<std::size_t>(options_.top_k) < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + options_.top_k, candidates_.end(), likelier);
    candidates_.resize(static_cast<std::size_t>(options_.top_k));
  }
  bool const some_are_cut = options_.top_k > 0 || options_.top_p < 1;  // without a cut any order will do
  if (some_are_cut) std::sort(candidates_.begin(), candidates_.end(), likelier);

  double const largest = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (candidate& it : candidates_)
    total += it.probability = std::exp((static_cast<double>(it.score) - largest) / options_.temperature);
  double kept = 0;
  std::size_t count = 0;
  while (count < candidates_.size() && (count == 0 || kept < options_.top_p * total))
    kept += candidates_[count++].probability;

  // 53 bits, as std::generate_canonical gives them, but alike in every library.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * kept;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    left -= candidates_[i].probability;
    if (left < 0) return candidates_[i].id;
  }
  return candidates_[count - 1].id;
}

}  // namespace kvquant::runtime
