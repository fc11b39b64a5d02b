#include "test/support/counting_new.hpp"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::size_t> calls{0};

void* take(std::size_t size) noexcept {
  ++calls;
  return std::malloc(size > 0 ? size : 1);
}
void* take(std::size_t size, std::size_t alignment) noexcept {
  ++calls;
  return std::aligned_alloc(alignment, (size / alignment + 1) * alignment);
}

void* checked(void* memory) {
  if (memory == nullptr) throw std::bad_alloc{};
  return memory;
}

}  // namespace

std::size_t kvquant::test::allocations() { return calls; }

// The other forms call these.
void* operator new(std::size_t size) { return checked(take(size)); }
void* operator new(std::size_t size, std::nothrow_t const&) noexcept { return take(size); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return checked(take(size, static_cast<std::size_t>(alignment)));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
