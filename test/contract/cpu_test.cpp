#include "backends/cpu/backend.hpp"

#include <catch2/catch.hpp>

#include "test/contract/attention_contract.hpp"
#include "test/contract/chosen_isa.hpp"
#include "test/contract/problems.hpp"

kvquant::contract::backend_under_test const& kvquant::contract::under_test() {
  skip_without_chosen_isa();
  // Queries in 8 bits miss by up to 1 % of a row; by 1.05 % in the worst of the drawn cases, where a query sees 11
  // tokens.
  static backend_under_test const it =
      describe<cpu::backend>({.out = 1.2e-2, .scores = 5e-2, .large_scores = false, .same_rows = false});
  return it;
}

TEST_CASE("levels of a channel's own are for floats, and integers say so", "[contract]") {
  using namespace kvquant;
  using S = spec<adaptive, adaptive>;
  auto it = contract::artifact_for<S>(contract::make_problem({.shape = contract::make_shape(2, 2, 64)}, 100));
  CHECK(cpu::backend::supports(it.info));
  it.info.own_levels = true;
  CHECK(cpu::float_backend::supports(it.info));
  CHECK_THROWS_WITH(cpu::backend::attention<S>(it), Catch::Contains("levels of a channel's own in integers"));
}
