#pragma once
/// \file
/// Simulated caches: every key and value of a window is rounded as a cache would round it, and read back.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "kvquant/core/executor.hpp"
#include "kvquant/core/view.hpp"
#include "runtime/model.hpp"

namespace kvquant::runtime {

/// A hook that counts the bits which a cache would need for what it has seen.
class simulator : public kv_hook {
 public:
  explicit simulator(std::string name) : name_(std::move(name)) {}

  std::string const& name() const { return name_; }

  /// Bits stored per key or value, over all that was seen: codes, ranges, sparse entries, exact tokens.
  double bits_per_element() const {
    return elements_ == 0 ? 0.0 : static_cast<double>(bits_) / static_cast<double>(elements_);
  }
  /// Bits allocated per key or value for a sequence of `tokens`.
  virtual double bits_at(std::size_t /*tokens*/) const { return bits_per_element(); }

 protected:
  void count(std::uint64_t elements, std::uint64_t bits) {
    elements_ += elements;
    bits_ += bits;
  }

 private:
  std::string name_;
  std::atomic<std::uint64_t> elements_ = 0, bits_ = 0;
};

/// Calls `f(first, count)` for blocks of rows that together are all rows, on the executor's threads.
template <class F>
void for_row_blocks(executor_ref executor, std::size_t rows, F&& f) {
  constexpr std::size_t block = 64;
  executor.parallel_for((rows + block - 1) / block, [&](std::size_t task, int) {
    std::size_t const first = task * block;
    f(first, std::min(block, rows - first));
  });
}

}  // namespace kvquant::runtime
