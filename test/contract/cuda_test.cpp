#include "backends/cuda/backend.hpp"
#include "test/contract/attention_contract.hpp"
#include "test/support/cuda_device.hpp"

namespace {

using namespace kvquant;

using served_specs =
    type_list<spec<nuq<2>, nuq<2>>, spec<nuq<3>, nuq<3>>, spec<nuq<4>, nuq<4>>, spec<normal_float<2>, normal_float<2>>,
              spec<normal_float<3>, normal_float<3>>, spec<normal_float<4>, normal_float<4>>,
              spec<uniform<2>, uniform<2>>, spec<uniform<3>, uniform<3>>, spec<uniform<4>, uniform<4>>,
              spec<adaptive, adaptive>, spec<passthrough, passthrough>>;

}  // namespace

kvquant::contract::backend_under_test const& kvquant::contract::under_test() {
  test::skip_without_cuda_device();
  static backend_under_test const it =
      describe<cuda::backend, served_specs>({.out = 3e-3, .scores = 2e-2, .large_scores = false, .same_rows = false});
  return it;
}
