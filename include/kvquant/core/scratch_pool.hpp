#pragma once
/// \file
/// Buffers that outlive a call: each caller borrows one, so that nothing is allocated once there are enough.

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace kvquant {

/// Any number of threads may borrow at once. Leases must not outlive the pool.
template <class T>
class scratch_pool {
 public:
  /// Something borrowed, given back when the lease ends.
  class lease {
   public:
    /// Takes `it` out of the pool for as long as it lives.
    lease(scratch_pool& pool, std::unique_ptr<T> it) : pool_(&pool), it_(std::move(it)) {}
    /// What is moved from gives nothing back.
    lease(lease&&) noexcept = default;
    lease& operator=(lease&&) = delete;
    ~lease() {
      if (it_) pool_->give_back(std::move(it_));
    }
    ///@{
    /// What was borrowed.
    T& operator*() const { return *it_; }
    T* operator->() const { return it_.get(); }
    ///@}

   private:
    scratch_pool* pool_;
    std::unique_ptr<T> it_;
  };

  /// What another has given back, with whatever it holds, or a new one.
  lease borrow() {
    {
      std::lock_guard const lock(mutex_);
      if (!idle_.empty()) {
        auto it = std::move(idle_.back());
        idle_.pop_back();
        return {*this, std::move(it)};
      }
      idle_.reserve(++made_);  // so that giving back never allocates
    }
    return {*this, std::make_unique<T>()};
  }

 private:
  void give_back(std::unique_ptr<T> it) noexcept {
    std::lock_guard const lock(mutex_);
    idle_.push_back(std::move(it));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;
  std::size_t made_ = 0;
};

}  // namespace kvquant
