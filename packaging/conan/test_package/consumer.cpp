// A program that knows kvquant only as a package.
#include <cstdio>

#include "backends/cpu/generic/backend.hpp"
#include "kvquant/kvquant.hpp"
#if defined(WITH_CPU)
#include "backends/cpu/backend.hpp"
#include "backends/cpu/thread_pool.hpp"
#endif

int main() {
  auto const exact = kvquant::make_passthrough_artifact({.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 64});
  bool served = kvquant::cpu::generic::backend::supports(exact.info).missing.empty();
#if defined(WITH_CPU)
  kvquant::cpu::thread_pool const pool(2);
  served = served && kvquant::cpu::backend::supports(exact.info).missing.empty() && pool.workers() == 2;
#endif
  std::printf("kvquant %s: %s\n", KVQUANT_VERSION, served ? "served" : "refused");
  return served ? 0 : 1;
}
