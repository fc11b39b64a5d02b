#include "examples/05_new_backend.hpp"
#include "test/contract/attention_contract.hpp"

// [doc:contract]
// One spec of each kind: what tells formats apart is in the library, not in the backend.
using toy_specs = kvquant::type_list<
    kvquant::spec<kvquant::nuq<3>, kvquant::nuq<3>>, kvquant::spec<kvquant::adaptive, kvquant::adaptive>,
    kvquant::spec<kvquant::passthrough, kvquant::passthrough>, kvquant::spec<kvquant::uniform<5>, kvquant::nuq<3>>>;

kvquant::contract::backend_under_test const& kvquant::contract::under_test() {
  static backend_under_test const it = describe<toy::backend, toy_specs>();
  return it;
}
// [/doc]
