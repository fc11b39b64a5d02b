#pragma once
/// \file
/// Where time goes, for whoever asks.

#include <chrono>

namespace kvquant {

/// Adds the seconds of its scope to one of several totals. Without them it does nothing, not even read the clock.
class scoped_timer {
 public:
  /// Adds to `totals->*part` when it goes; null: measures nothing.
  template <class Totals>
  scoped_timer(Totals* totals, double Totals::*part) {
    if (totals == nullptr) return;
    seconds_ = &(totals->*part);
    start_ = clock::now();
  }
  scoped_timer(scoped_timer const&) = delete;
  scoped_timer& operator=(scoped_timer const&) = delete;
  ~scoped_timer() {
    if (seconds_ != nullptr) *seconds_ += std::chrono::duration<double>(clock::now() - start_).count();
  }

 private:
  using clock = std::chrono::steady_clock;
  double* seconds_ = nullptr;
  clock::time_point start_{};
};

}  // namespace kvquant
