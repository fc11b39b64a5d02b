#pragma once
/// \file
/// From the name of a set of instructions to its kernels.

#include <utility>

#include "backends/cpu/isa.hpp"
#include "backends/cpu/isa/avx2.hpp"
#include "backends/cpu/isa/avx512.hpp"

namespace kvquant::cpu {

/// `f(kernels)` of the instructions; nothing where the compiler has none of them.
template <class Result, class F>
Result with_kernels([[maybe_unused]] isa which, [[maybe_unused]] F&& f) {
#if defined(__x86_64__)
  if (which == isa::avx512) return f(avx512::kernels{});
  return f(avx2::kernels{});
#else
  return {};
#endif
}

}  // namespace kvquant::cpu
