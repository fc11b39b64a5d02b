#include "backends/cpu/isa/portable.hpp"

HWY_BEFORE_NAMESPACE();
namespace kvquant::cpu::portable {
#define KVQ_INSTANCE template
#include "backends/cpu/kernel/instances.inl"
}  // namespace kvquant::cpu::portable
HWY_AFTER_NAMESPACE();
