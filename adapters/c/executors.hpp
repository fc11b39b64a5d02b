#pragma once
/// \file
/// Who runs the tasks of a cache: the calling thread, a pool of the cache's own, or the caller's executor.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <utility>

#include "adapters/c/status.hpp"
#include "backends/cpu/thread_pool.hpp"
#include "kvquant/core/executor.hpp"

namespace kvquant::c {

/// A pool that several threads may use: one at a time.
class shared_pool {
 public:
  explicit shared_pool(int workers) : pool_(workers) {}

  int workers() const { return pool_.workers(); }
  template <class F>
  void parallel_for(std::size_t tasks, F&& f) {
    std::lock_guard const lock(mutex_);
    pool_.parallel_for(tasks, f);
  }

 private:
  std::mutex mutex_;
  cpu::thread_pool pool_;
};
static_assert(Executor<shared_pool>);

/// The caller's. Throws `failure` with KVQUANT_ERROR_EXECUTOR where it does not do what it was asked for.
class foreign_executor {
 public:
  explicit foreign_executor(kvquant_executor const& it) : it_(it) {}

  int workers() const { return it_.workers; }
  template <class F>
  void parallel_for(std::size_t tasks, F&& f) {
    if (tasks == 0) return;
    round<std::remove_reference_t<F>> asked{f, tasks, it_.workers};
    it_.run(it_.context, tasks, &decltype(asked)::run, &asked);
    if (asked.failure) std::rethrow_exception(asked.failure);
    if (asked.done != tasks || asked.strange != 0)
      throw failure{KVQUANT_ERROR_EXECUTOR,
                    text("the executor ran ", asked.done, " of ", tasks, " tasks and ", asked.strange,
                         " that are none or have no worker of 0 to ", it_.workers - 1)};
  }

 private:
  /// One `parallel_for`.
  template <class F>
  struct round {
    F& f;
    std::size_t tasks;
    std::int32_t workers;
    std::atomic<std::size_t> done{0}, strange{0};
    std::mutex mutex{};
    std::exception_ptr failure{};

    /// A `kvquant_task`: lets no exception through to the caller's threads.
    static void run(void* self, std::size_t index, std::int32_t worker) noexcept {
      auto& it = *static_cast<round*>(self);
      if (index >= it.tasks || worker < 0 || worker >= it.workers) {
        ++it.strange;
        return;
      }
      try {
        it.f(index, worker);
      } catch (...) {
        std::lock_guard const lock(it.mutex);
        if (!it.failure) it.failure = std::current_exception();
      }
      ++it.done;
    }
  };

  kvquant_executor it_;
};
static_assert(Executor<foreign_executor>);

/// One of the three.
class cache_executor {
 public:
  /// `threads` counts where `foreign` is none.
  cache_executor(int threads, std::optional<kvquant_executor> const& foreign) {
    if (foreign)
      foreign_.emplace(*foreign);
    else if (threads != 1)
      pool_.emplace(threads);
  }

  executor_ref ref() {
    if (foreign_) return *foreign_;
    if (pool_) return *pool_;
    return here_;
  }

 private:
  inline_executor here_;
  std::optional<shared_pool> pool_;
  std::optional<foreign_executor> foreign_;
};

}  // namespace kvquant::c
