// A program that knows the CUDA backend only as an installed package. It runs where there is no device.
#include <cstdio>

#include "backends/cuda/backend.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "kvquant/quantize/spec.hpp"

int main() {
  kvquant::model_shape shape{.layers = 1, .q_heads = 2, .kv_heads = 1, .head_dim = 64};
  auto const artifact = kvquant::make_passthrough_artifact(shape);
  kvquant::support const found = kvquant::cuda::backend::supports(artifact.info);
  std::printf("%s: missing \"%s\", kernels %s\n", KVQUANT_VERSION, found.missing.c_str(),
              kvquant::cuda::attend_launcher_for(3, 64) != nullptr ? "there" : "absent");
  return found.missing.find("a CUDA device") == 0 ? 0 : 1;
}
