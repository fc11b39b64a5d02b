#pragma once
/// \file
/// Arrays that start on a line of the machine's memory, so that no vector load touches two.

#include <cstddef>
#include <new>
#include <vector>

namespace kvquant::cpu {

inline constexpr std::size_t line_bytes = 64;

template <class T>
struct line_allocator {
  using value_type = T;
  line_allocator() = default;
  template <class U>
  line_allocator(line_allocator<U> const&) {}
  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new (count * sizeof(T), std::align_val_t{line_bytes}));
  }
  void deallocate(T* memory, std::size_t) noexcept { ::operator delete (memory, std::align_val_t{line_bytes}); }
  template <class U>
  friend bool operator==(line_allocator const&, line_allocator<U> const&) {
    return true;
  }
};

template <class T>
using line_vector = std::vector<T, line_allocator<T>>;

}  // namespace kvquant::cpu
