#include "backends/cpu/backend.hpp"
#include "test/contract/attention_contract.hpp"
#include "test/contract/chosen_isa.hpp"

kvquant::contract::backend_under_test const& kvquant::contract::under_test() {
  skip_without_chosen_isa();
  static backend_under_test const it = describe<cpu::float_backend>();
  return it;
}
