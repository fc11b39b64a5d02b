#pragma once
/// \file
/// Random choices that are the same on every machine: the standard's distributions are not.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "kvquant/core/hash.hpp"

namespace kvquant::tasks {

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
class random_source {
 public:
  /// Sources of one seed with different names are independent.
  random_source(std::uint64_t seed, std::string_view name) : state_(seed) {
    fingerprint hash;
    hash.add(name);
    state_ = next() ^ hash.value();
  }

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  /// 0 … bound − 1, each as likely as the others; `bound` is 1 at least.
  std::size_t below(std::size_t bound) {
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    std::uint64_t const usable = most - most % bound;  // a multiple
    std::uint64_t drawn = next();
    while (drawn >= usable) drawn = next();
    return static_cast<std::size_t>(drawn % bound);
  }

  template <class Range>
  auto const& pick(Range const& from) {
    return from[below(from.size())];
  }

  template <class T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

 private:
  std::uint64_t state_;
};

}  // namespace kvquant::tasks
