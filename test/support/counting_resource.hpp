#pragma once
/// \file
/// Memory that knows how much of it is taken.

#include <atomic>
#include <cstddef>
#include <limits>
#include <memory_resource>
#include <new>

namespace kvquant::test {

/// May be used from several threads. Throws `std::bad_alloc` beyond `limit`.
class counting_resource : public std::pmr::memory_resource {
 public:
  explicit counting_resource(std::size_t limit = std::numeric_limits<std::size_t>::max()) : limit_(limit) {}

  std::size_t bytes() const { return bytes_; }              ///< taken and not given back
  std::size_t allocations() const { return allocations_; }  ///< so far

 private:
  void* do_allocate(std::size_t size, std::size_t alignment) override {
    if (size > limit_ - bytes_) throw std::bad_alloc{};
    void* const memory = std::pmr::new_delete_resource()->allocate(size, alignment);
    bytes_ += size;
    ++allocations_;
    return memory;
  }
  void do_deallocate(void* memory, std::size_t size, std::size_t alignment) override {
    bytes_ -= size;
    std::pmr::new_delete_resource()->deallocate(memory, size, alignment);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }

  std::size_t limit_;
  std::atomic<std::size_t> bytes_{0}, allocations_{0};
};

}  // namespace kvquant::test
