// The kernels, in the namespace and out of the words of the instructions that include this.

#include "backends/cpu/kernel/query.inl"
#include "backends/cpu/kernel/unrolled.inl"

#include "backends/cpu/kernel/exact_tile.inl"

#include "backends/cpu/kernel/side_codes.inl"

#include "backends/cpu/kernel/page_keys.inl"

#include "backends/cpu/kernel/page_values.inl"

#include "backends/cpu/kernel/page_slots.inl"

#include "backends/cpu/kernel/seal.inl"

#include "backends/cpu/kernel/split.inl"

#if defined(KVQUANT_CPU_COMPILED)  // by backends/cpu/compiled, for whoever links it
#define KVQ_INSTANCE extern template
#include "backends/cpu/kernel/instances.inl"
#undef KVQ_INSTANCE
#endif
