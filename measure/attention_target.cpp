#include "measure/attention_target.hpp"

#include "backends/cpu/backend.hpp"
#include "kvquant/core/error.hpp"
#if defined(KVQUANT_CUDA)
#include "measure/device.hpp"
#endif

namespace kvquant::measure {

#if defined(KVQUANT_CUDA)
std::vector<std::string> attention_backends() { return {"cpu", "cuda"}; }
#else
std::vector<std::string> attention_backends() { return {"cpu"}; }
#endif

attention_target target_of(std::string_view backend, int threads) {
#if defined(KVQUANT_CUDA)
  if (backend == "cuda") return cuda_target();
#endif
  require(backend == "cpu", errc::unsupported, "backend \"", backend, "\", expected one that attention is measured on");
  return cpu_target(threads);
}

std::string machine_of([[maybe_unused]] std::string_view backend) {
#if defined(KVQUANT_CUDA)
  if (backend == "cuda") return device_architecture();
#endif
  return std::string(cpu::name_of(cpu::chosen_isa()));
}

}  // namespace kvquant::measure
