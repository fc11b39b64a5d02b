#include "tools/tasks/drift.hpp"

#include <array>
#include <catch2/catch.hpp>

#include "tools/tasks/summary.hpp"

namespace kvquant::tasks {
namespace {

using ids = std::vector<runtime::token_id>;

TEST_CASE("drift is summed up in buckets of positions") {
  std::array const kl = {0.0, 1.0, 2.0, 3.0, 4.0};
  auto const it = drift_of(ids{1, 2, 3, 4, 5}, ids{1, 2, 9, 4, 9}, kl, 2);
  CHECK(it.first_divergence == 2u);
  CHECK(it.all.kl == Approx(2));
  CHECK(it.all.agreement == Approx(0.6));
  REQUIRE(it.buckets.size() == 2);
  CHECK((it.buckets[0].first == 0 && it.buckets[0].count == 3 && it.buckets[1].first == 3 && it.buckets[1].count == 2));
  CHECK(it.buckets[0].kl == Approx(1));
  CHECK(it.buckets[1].kl == Approx(3.5));
  CHECK(it.buckets[0].agreement == Approx(2.0 / 3));
  CHECK(it.buckets[1].agreement == Approx(0.5));
}

TEST_CASE("what never differs has no first divergence") {
  std::array const kl = {0.0, 0.0};
  CHECK_FALSE(drift_of(ids{1, 2}, ids{1, 2}, kl, 8).first_divergence);
}

TEST_CASE("means, standard errors, differences sample by sample") {
  auto const it = moments_of({1, 0, 1, 0});
  CHECK(it.mean == 0.5);
  CHECK(it.standard_error == Approx(std::sqrt(1.0 / 3 / 4)));
  auto const change = difference({1, 1, 0}, {0, 1, 0});
  CHECK(change.mean == Approx(1.0 / 3));
  CHECK(difference({2, 3}, {1, 2}).standard_error == 0);
}

TEST_CASE("scores are above chance by two standard errors, or not") {
  CHECK(at_chance({0, 0, 0}, 0));
  CHECK(at_chance({1, 0, 0, 0, 0}, 0));
  CHECK_FALSE(at_chance({1, 1, 1, 0}, 0));
  CHECK(at_chance({1, 1, 1, 0}, 0.5));
  CHECK(at_chance({1}, 0));  // one says nothing
}

}  // namespace
}  // namespace kvquant::tasks
