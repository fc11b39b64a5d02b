#pragma once
/// \file
/// A cache and its sequences as Python may use them: from any thread, in any order, closed or not.

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "kvquant/engine.hpp"

namespace kvquant::python {

class sequence_state;

/// The engine, while it is open. None of this may run with Python's lock held, but for construction.
class cache_state {
 public:
  cache_state(std::unique_ptr<engine> opened, int threads) : engine_(std::move(opened)), threads_(threads) {}

  /// `f(engine)`, with the cache open until it returns. Throws `ValueError` where it is not.
  template <class F>
  auto use(F&& f) {
    std::shared_lock const open(open_);
    require_open();
    return f(*engine_);
  }
  /// `f(executor)`: the pool where it is free, else the calling thread. Results are the same.
  template <class F>
  void compute(F&& f) {
    std::unique_lock const mine(pool_mutex_, std::try_to_lock);
    if (mine.owns_lock() && threads_ != 1) {
      if (!pool_) pool_ = std::make_unique<cpu::thread_pool>(threads_);
      f(executor_ref(*pool_));
    } else {
      inline_executor here;
      f(executor_ref(here));
    }
  }
  void adopt(std::shared_ptr<sequence_state> const& opened);
  /// Closes the sequences too; waits for calls in progress.
  void close();
  bool is_closed() {
    std::shared_lock const open(open_);
    return engine_ == nullptr;
  }

 private:
  friend class sequence_state;
  void require_open() const;

  std::shared_mutex open_;  // shared by whoever uses the engine
  std::unique_ptr<engine> engine_;
  std::mutex pool_mutex_;
  int threads_;
  std::unique_ptr<cpu::thread_pool> pool_;  // made when it is first needed
  std::mutex sequences_mutex_;
  std::vector<std::weak_ptr<sequence_state>> sequences_;
};

/// One sequence, which one call at a time uses.
class sequence_state {
 public:
  sequence_state(std::shared_ptr<cache_state> owner, std::unique_ptr<engine_sequence> opened)
      : owner_(std::move(owner)), sequence_(std::move(opened)) {}

  std::shared_ptr<cache_state> const& owner() const { return owner_; }
  /// `f(sequence, engine)`. Throws `ValueError` where it or its cache is closed.
  template <class F>
  auto use(F&& f) {
    std::shared_lock const open(owner_->open_);
    std::lock_guard const lock(mutex_);
    return f(opened(), *owner_->engine_);
  }
  void close() {
    std::shared_lock const open(owner_->open_);
    std::lock_guard const lock(mutex_);
    sequence_.reset();
  }

 private:
  friend class cache_state;
  friend class locked_sequences;
  engine_sequence& opened() const;

  std::shared_ptr<cache_state> owner_;
  std::mutex mutex_;
  std::unique_ptr<engine_sequence> sequence_;  // goes before the engine
};

/// Several sequences at once, each of them perhaps more than once; locked in one order, so that calls cannot wait for
/// each other. The caller keeps the cache open.
class locked_sequences {
 public:
  explicit locked_sequences(std::vector<std::shared_ptr<sequence_state>> const& all);
  engine_sequence const& operator[](std::size_t index) const { return all_[index]->opened(); }

 private:
  std::vector<std::shared_ptr<sequence_state>> const& all_;
  std::vector<std::unique_lock<std::mutex>> locks_;
};

}  // namespace kvquant::python
