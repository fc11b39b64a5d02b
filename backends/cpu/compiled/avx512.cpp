#include "backends/cpu/isa/avx512.hpp"

#if defined(__x86_64__)
namespace kvquant::cpu::avx512 {
#define KVQ_INSTANCE template
#include "backends/cpu/kernel/instances.inl"
}  // namespace kvquant::cpu::avx512
#endif
