#include "backends/cpu/backend.hpp"
#include "test/contract/attention_contract.hpp"

kvquant::contract::backend_under_test const& kvquant::contract::under_test() {
  static backend_under_test const it = describe<cpu::float_backend>();
  return it;
}
