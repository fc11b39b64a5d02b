#include "backends/cpu/isa/avx2.hpp"

#if defined(__x86_64__)
namespace kvquant::cpu::avx2 {
#define KVQ_INSTANCE template
#include "backends/cpu/kernel/instances.inl"
}  // namespace kvquant::cpu::avx2
#endif
