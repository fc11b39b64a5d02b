#include "tools/plan/trade_off.hpp"

#include <algorithm>

namespace kvquant::plan {

namespace {

/// Keeps what has less loss than all of fewer bytes; of equals the first.
template <class T>
std::vector<T> frontier(std::vector<T> all) {
  std::stable_sort(all.begin(), all.end(),
                   [](T const& a, T const& b) { return a.bytes != b.bytes ? a.bytes < b.bytes : a.loss < b.loss; });
  std::vector<T> kept;
  for (T const& it : all)
    if (kept.empty() || it.loss < kept.back().loss) kept.push_back(it);
  return kept;
}

}  // namespace

std::vector<layer_choice> undominated(std::vector<layer_choice> choices) { return frontier(std::move(choices)); }

trade_off::trade_off(std::span<std::vector<layer_choice> const> layers) : stages_{{state{}}} {
  for (auto const& layer : layers) {
    auto const choices = undominated(layer);
    auto const& before = stages_.back();
    std::vector<state> all;
    all.reserve(before.size() * choices.size());
    for (std::size_t i = 0; i < before.size(); ++i)
      for (layer_choice const& it : choices)
        all.push_back({before[i].bytes + it.bytes, before[i].loss + it.loss, it.id, i});
    stages_.push_back(frontier(std::move(all)));
  }
}

std::optional<std::size_t> trade_off::best_within(std::size_t bytes) const {
  auto const& points = stages_.back();
  auto const beyond = std::upper_bound(points.begin(), points.end(), bytes,
                                       [](std::size_t most, state const& it) { return most < it.bytes; });
  if (beyond == points.begin()) return std::nullopt;
  return static_cast<std::size_t>(beyond - points.begin()) - 1;
}

std::vector<std::size_t> trade_off::choices(std::size_t point) const {
  std::vector<std::size_t> ids(stages_.size() - 1);
  for (std::size_t layer = ids.size(); layer-- > 0;) {
    state const& it = stages_[layer + 1][point];
    ids[layer] = it.id;
    point = it.before;
  }
  return ids;
}

}  // namespace kvquant::plan
