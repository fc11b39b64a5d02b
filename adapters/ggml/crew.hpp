#pragma once
/// \file
/// ggml's own threads as an executor.

#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <type_traits>
#include <utility>

#include "kvquant/core/executor.hpp"

namespace kvquant::ggml {

/// ggml calls a custom operator on each thread of the graph at once. The first leads, the others wait for tasks until
/// it dismisses them, asleep where they wait long. One operator at a time may use a crew, which is what a graph does;
/// `parallel_for` does not nest.
class crew {
 public:
  /// Every thread `ith` of `nth` calls this; all return when the leader's `lead(executor)` has.
  template <class F>
  void join(int ith, int nth, F&& lead) noexcept {
    static_assert(std::is_nothrow_invocable_v<F&, executor_ref>);
    if (ith != 0) return help(ith);
    helpers_ = nth - 1;
    lead(executor_ref(*this));
    run_round(nullptr);
    round_ = 0;  // nobody reads it before ggml's barrier
  }

  int workers() const { return helpers_ + 1; }

  template <class F>
  void parallel_for(std::size_t tasks, F&& f) {
    tasks_ = tasks;
    next_ = 0;
    if (tasks > 0) run_round([&f](std::size_t task, int worker) { f(task, worker); });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  /// Without work the helpers go home.
  void run_round(std::function<void(std::size_t, int)> work) {
    if (work_ = std::move(work); helpers_ > 0) {
      busy_ = helpers_;
      failed_ = false;
      ++round_;
      round_.notify_all();
    }
    if (work_) take_tasks(0);
    for (int busy = busy_; busy != 0; busy = busy_) busy_.wait(busy);
    work_ = nullptr;
  }

  void help(int worker) {
    for (unsigned seen = 0;; ++seen) {
      round_.wait(seen);  // a round ends when all have taken part: none is missed
      bool const dismissed = !work_;
      if (!dismissed) take_tasks(worker);
      if (--busy_ == 0) busy_.notify_one();
      if (dismissed) return;
    }
  }

  void take_tasks(int worker) {
    for (std::size_t task = next_++; task < tasks_; task = next_++) {
      try {
        work_(task, worker);
      } catch (...) {
        if (!failed_.exchange(true)) failure_ = std::current_exception();
      }
    }
  }

  int helpers_ = 0;
  std::atomic<unsigned> round_{0};
  std::atomic<int> busy_{0};
  std::atomic<std::size_t> next_{0};
  std::size_t tasks_ = 0;
  std::function<void(std::size_t, int)> work_;
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};
static_assert(Executor<crew>);

}  // namespace kvquant::ggml
