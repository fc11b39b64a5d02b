// A program that knows kvquant only as an installed package.
#include <cstdio>

#include "backends/cpu/generic/backend.hpp"
#include "kvquant/core/half.hpp"

static_assert(kvquant::Backend<kvquant::cpu::generic::backend>);

int main() {
  float const third = kvquant::round_to_half(1.0f / 3.0f);
  std::printf("%s %.10f\n", KVQUANT_VERSION, static_cast<double>(third));
  return third == 0x1.554p-2f ? 0 : 1;
}
