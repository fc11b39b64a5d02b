#pragma once
/// \file
/// From the name of a set of instructions to its kernels.

#include <utility>

#include "backends/cpu/isa.hpp"
#include "backends/cpu/isa/avx2.hpp"
#include "backends/cpu/isa/avx512.hpp"
#include "backends/cpu/isa/portable.hpp"

namespace kvquant::cpu {

/// `f(kernels)` of the instructions.
template <class Result, class F>
Result with_kernels([[maybe_unused]] isa which, F&& f) {
#if defined(__x86_64__)
  if (which == isa::avx512) return f(avx512::kernels{});
  if (which == isa::avx2) return f(avx2::kernels{});
#endif
  return f(portable::kernels{});
}

}  // namespace kvquant::cpu
