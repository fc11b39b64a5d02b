#include "kvquant/format/adaptive.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "kvquant/format/nuq.hpp"

using namespace kvquant;

namespace {

std::vector<float> even_levels(std::size_t count) {
  std::vector<float> levels(count);
  for (std::size_t i = 0; i < count; ++i) levels[i] = -1 + 2 * static_cast<float>(i) / static_cast<float>(count - 1);
  return levels;
}

}  // namespace

TEST_CASE("a table of few levels encodes to as few codes, wherever the value lies", "[format]") {
  for (std::size_t const count : {2u, 4u, 8u, 16u}) {
    auto const levels = even_levels(count);
    auto const table = adaptive::make_table(levels);
    for (std::size_t i = 0; i < count; ++i) {
      CHECK(adaptive::encode(table, levels[i]) == i);
      CHECK(adaptive::decode(table, static_cast<adaptive::code_type>(i)) == levels[i]);
    }
    for (float const x : {1.0f, 1e30f, std::numeric_limits<float>::infinity()})
      CHECK(adaptive::encode(table, x) == count - 1);
    CHECK(adaptive::encode(table, -1e30f) == 0);
  }
}

TEST_CASE("sixteen levels are those of nuq4", "[format]") {
  auto const levels = even_levels(16);
  auto const table = adaptive::make_table(levels);
  auto const same = nuq<4>::make_table(levels);
  for (float x = -1.2f; x < 1.2f; x += 0.01f) CHECK(adaptive::encode(table, x) == nuq<4>::encode(same, x));
}

TEST_CASE("a table of another number of levels is refused", "[format]") {
  for (std::size_t const count : {0u, 1u, 3u, 12u, 32u}) {
    CAPTURE(count);
    CHECK_THROWS_WITH(adaptive::make_table(std::vector<float>(count, 0.0f)), Catch::Contains("expected 2, 4, 8 or 16"));
  }
  CHECK_THROWS_AS(adaptive::make_table(std::vector<float>{1, 0}), error);
  CHECK_THROWS_AS(adaptive::make_table(std::vector<float>{0, NAN}), error);
  CHECK_THROWS_AS(adaptive::make_table(std::vector<float>{0, 1}, std::vector<float>{0, 1, 2, 3}), error);
}
