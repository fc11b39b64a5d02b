#pragma once
/// \file
/// The bandwidth that shares are taken of, measured once a run.

#include <map>

#include "backends/cpu/thread_pool.hpp"
#include "measure/roof.hpp"

namespace kvquant::bench {

/// Bytes per second that so many threads read.
inline double bandwidth_of(int threads) {
  static std::map<int, double> known;
  auto const [it, is_new] = known.try_emplace(threads);
  if (is_new) {
    cpu::thread_pool pool(threads);
    it->second = measure::read_bandwidth(pool);
  }
  return it->second;
}

}  // namespace kvquant::bench
