#include "tools/tasks/batches.hpp"

#include <catch2/catch.hpp>

namespace kvquant::tasks {
namespace {

/// Samples of `tokens` each, of which all share the first `shared`.
sample_group group_of(std::size_t count, std::size_t tokens, std::size_t shared) {
  sample_group group(count);
  for (std::size_t i = 0; i < count; ++i) {
    group[i].prompt.assign(tokens, 1);
    for (std::size_t at = shared; at < tokens; ++at) group[i].prompt[at] = static_cast<runtime::token_id>(10 + i);
    group[i].most_tokens = 8;
  }
  return group;
}

TEST_CASE("what shares its start is answered by sixteens") {
  auto const batches = batches_of(group_of(35, 4000, 3990));
  REQUIRE(batches.size() == 3);
  CHECK(batches[0].count == 16);
  CHECK(batches[1].first == 16);
  CHECK(batches[2].first == 32);
  CHECK(batches[2].count == 3);
  // 3990 once; 10 and 8, and two pages, of each
  CHECK(batches[0].tokens == 3990 + 16 * (18 + 128));
}

TEST_CASE("what shares nothing is answered in the room there is, one at least") {
  auto const batches = batches_of(group_of(5, 5000, 0));
  REQUIRE(batches.size() == 2);
  CHECK(batches[0].count == 3);
  CHECK(batches[1].count == 2);
  CHECK(batches[1].tokens == 2 * (5000 + 8 + 128));
  CHECK(batches_of(group_of(3, 20000, 0)).size() == 3);
  CHECK(batches_of({}).empty());
}

}  // namespace
}  // namespace kvquant::tasks
