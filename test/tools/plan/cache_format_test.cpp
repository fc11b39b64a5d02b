#include "tools/plan/cache_format.hpp"

#include <catch2/catch.hpp>

using namespace kvquant;

TEST_CASE("formats are what they are called", "[plan]") {
  for (char const* const name : {"f16", "nuq3", "nuq3-1%", "int8", "nf4-0.5%", "adaptive2.5", "adaptive3-0.5%",
                                 "nuq4-1%/nuq2-1%", "nuq4/adaptive2.25", "nuq4-1%/nuq4"})
    CHECK(to_string(plan::parse_cache_format(name)) == name);
  CHECK(to_string(plan::parse_cache_format("nuq3/nuq3")) == "nuq3");
}

TEST_CASE("outliers are for sides that name none", "[plan]") {
  CHECK(to_string(plan::parse_cache_format("nuq3", 0.02)) == "nuq3-2%");
  CHECK(to_string(plan::parse_cache_format("nuq3-0%/nuq4", 0.02)) == "nuq3/nuq4-2%");
  CHECK(to_string(plan::parse_cache_format("f16", 0.02)) == "f16");
}

TEST_CASE("what is no format is refused with what was expected", "[plan]") {
  for (char const* const wrong :
       {"", "nuq", "nuq9", "nuq3-", "nuq3-1", "nuq3-x%", "nuq3-51%", "nuq3--1%", "f16-1%", "adaptive", "adaptive0.5",
        "adaptive5", "adaptive-1%", "f16/nuq3", "nuq3/f16", "nuq3/", "nuq3/nuq3/nuq3"})
    CHECK_THROWS_WITH(plan::parse_cache_format(wrong), Catch::Contains("expected"));
}

TEST_CASE("a page's sizes are those of its sides", "[plan]") {
  page_geometry const mixed = geometry_of(plan::parse_cache_format("nuq4-1%/nuq2"), 128);
  CHECK(mixed.k_code_bytes() == 64 * 128 * 4 / 8);
  CHECK(mixed.v_code_bytes() == 64 * 128 * 2 / 8);
  CHECK(mixed.v_slots == 0);
  CHECK(mixed.k_slots >= 82);
  page_geometry const adaptive = geometry_of(plan::parse_cache_format("adaptive2.5"), 64);
  CHECK(adaptive.page_bytes() == 2 * 64 * 64 * 5 / 16);
}
