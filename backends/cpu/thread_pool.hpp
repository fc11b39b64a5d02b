#pragma once
/// \file
/// The only place that starts threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "kvquant/core/executor.hpp"

namespace kvquant::cpu {

/// A fixed set of workers; the calling thread is worker 0. Tasks are handed out in order, one at a time. One
/// `parallel_for` runs at once and it does not nest.
class thread_pool {
 public:
  /// `workers` ≤ 0 means one per hardware thread.
  explicit thread_pool(int workers = 0) {
    if (workers <= 0) workers = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    threads_.reserve(static_cast<std::size_t>(workers - 1));
    for (int worker = 1; worker < workers; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  }

  thread_pool(thread_pool const&) = delete;
  thread_pool& operator=(thread_pool const&) = delete;

  ~thread_pool() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  /// The caller's thread is one of them.
  int workers() const { return static_cast<int>(threads_.size()) + 1; }

  /// As `Executor` asks. Calls must not overlap.
  template <class F>
  void parallel_for(std::size_t tasks, F&& f) {
    if (tasks == 0) return;
    start(tasks, [&f](std::size_t task, int worker) { f(task, worker); });
    work(0);
    finish();
  }

 private:
  void start(std::size_t tasks, std::function<void(std::size_t, int)> task) {
    {
      std::lock_guard lock(mutex_);
      task_ = std::move(task);
      tasks_ = tasks;
      next_ = 0;
      busy_ = threads_.size();
      failure_ = nullptr;
      ++round_;
    }
    wake_.notify_all();
  }

  void work(int worker) {
    for (std::size_t task = next_++; task < tasks_; task = next_++) {
      try {
        task_(task, worker);
      } catch (...) {
        std::lock_guard lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
    }
  }

  void finish() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
    task_ = nullptr;
    if (failure_) std::rethrow_exception(failure_);
  }

  void serve(int worker) {
    for (std::size_t seen = 0;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
        if (stopping_) return;
        seen = round_;
      }
      work(worker);
      std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::function<void(std::size_t, int)> task_;
  std::atomic<std::size_t> next_{0};
  std::size_t tasks_ = 0, busy_ = 0, round_ = 0;
  std::exception_ptr failure_;
  bool stopping_ = false;
};
static_assert(Executor<thread_pool>);

}  // namespace kvquant::cpu
