#pragma once
/// \file
/// Memory in large pages of the operating system, for caches that are read from end to end for every token.

#include <algorithm>
#include <cstddef>
#include <memory_resource>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace kvquant {

/// Asks the system to back what is as large as one of its huge pages by them; everything else is `upstream`'s. Without
/// huge pages the memory is the same, only slower to walk through: the pages of one KV head lie far apart, and with
/// small pages nearly each costs a walk of the page table.
class huge_page_resource final : public std::pmr::memory_resource {
 public:
  /// 2 MiB. Smaller allocations are left to the upstream resource.
  static constexpr std::size_t huge_page_bytes = std::size_t{1} << 21;

  /// `upstream`: where memory comes from.
  explicit huge_page_resource(std::pmr::memory_resource* upstream = std::pmr::new_delete_resource())
      : upstream_(upstream) {}

 private:
  static bool is_large(std::size_t bytes) { return bytes >= huge_page_bytes; }
  /// Whole pages, so that none is shared with another's memory.
  static std::size_t rounded(std::size_t bytes) {
    return (bytes + huge_page_bytes - 1) / huge_page_bytes * huge_page_bytes;
  }

  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (!is_large(bytes)) return upstream_->allocate(bytes, alignment);
    std::size_t const whole = rounded(bytes);
    if (whole < bytes) throw std::bad_alloc{};
    void* const memory = upstream_->allocate(whole, std::max(alignment, huge_page_bytes));
#if defined(MADV_HUGEPAGE)
    madvise(memory, whole, MADV_HUGEPAGE);  // a wish: where it is refused nothing is lost
#endif
    return memory;
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    if (!is_large(bytes)) return upstream_->deallocate(memory, bytes, alignment);
    upstream_->deallocate(memory, rounded(bytes), std::max(alignment, huge_page_bytes));
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override {
    auto const* it = dynamic_cast<huge_page_resource const*>(&other);
    return it != nullptr && it->upstream_->is_equal(*upstream_);
  }

  std::pmr::memory_resource* upstream_;
};

/// One for the whole program, which nothing outlives.
inline std::pmr::memory_resource* huge_pages() {
  static huge_page_resource it;
  return &it;
}

}  // namespace kvquant
