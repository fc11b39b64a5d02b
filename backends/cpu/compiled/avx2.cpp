#include "backends/cpu/isa/avx2.hpp"

#if defined(__x86_64__)
KVQ_TARGET_BEGIN("avx2,fma,f16c")
namespace kvquant::cpu::avx2 {
#define KVQ_INSTANCE template
#include "backends/cpu/kernel/instances.inl"
}  // namespace kvquant::cpu::avx2
KVQ_TARGET_END
#endif
