#include "tools/plan/quantity.hpp"

#include <catch2/catch.hpp>

using namespace kvquant;

TEST_CASE("tokens are counted in powers of 1024", "[plan]") {
  CHECK(plan::parse_tokens("1") == 1);
  CHECK(plan::parse_tokens("10000000") == 10'000'000);
  CHECK(plan::parse_tokens("128K") == 131072);
  CHECK(plan::parse_tokens("128k") == 131072);
  CHECK(plan::parse_tokens("1M") == 1048576);
  CHECK(plan::parse_tokens("1048576M") == plan::most_tokens);
  for (char const* const wrong :
       {"", "K", "0", "-1", "1.5K", "1G", "12 K", "1048577M", "18446744073709551617", "18446744073709551615K"})
    CHECK_THROWS_WITH(plan::parse_tokens(wrong), Catch::Contains(wrong) && Catch::Contains("131072"));
}

TEST_CASE("bytes are counted in the units that they name", "[plan]") {
  CHECK(plan::parse_bytes("1") == 1);
  CHECK(plan::parse_bytes("2GiB") == std::size_t{2} << 30);
  CHECK(plan::parse_bytes("0.5 MiB") == std::size_t{1} << 19);
  CHECK(plan::parse_bytes("1.5GB") == 1'500'000'000);
  CHECK(plan::parse_bytes("64kB") == 64000);
  for (char const* const wrong : {"", "GiB", "0", "-1GiB", "nan", "inf", "1e300", "2gib", "2048TiB"})
    CHECK_THROWS_WITH(plan::parse_bytes(wrong), Catch::Contains(wrong) && Catch::Contains("2GiB"));
}
