#include "backends/cpu/isa/portable.hpp"

namespace kvquant::cpu::portable {
#define KVQ_INSTANCE template
#include "backends/cpu/kernel/instances.inl"
}  // namespace kvquant::cpu::portable
