#include "backends/cpu/isa/avx512.hpp"

#if defined(__x86_64__)
KVQ_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")
namespace kvquant::cpu::avx512 {
#define KVQ_INSTANCE template
#include "backends/cpu/kernel/instances.inl"
}  // namespace kvquant::cpu::avx512
KVQ_TARGET_END
#endif
