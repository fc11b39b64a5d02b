#include "kvquant/calibrate/any_artifact.hpp"

#include <catch2/catch.hpp>
#include <string>
#include <type_traits>

#include "test/support/containers.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

namespace kvquant {
namespace {

using two_bits = spec<nuq<2>, nuq<2>>;

TEST_CASE("an artifact of any datatypes is the one that was written", "[calibrate]") {
  test::temporary_folder const folder;
  auto written = test::small_artifact<two_bits>();
  save(written, folder / "a.kvq");
  any_artifact const read = load_any_artifact(folder / "a.kvq");
  CHECK(read.info.spec == two_bits::name());
  CHECK(read.info.hash == written.info.hash);
  int visits = 0;
  visit_artifact(read, [&]<class Found>(artifact<Found> const& it) {
    ++visits;
    CHECK(std::is_same_v<Found, two_bits>);
    REQUIRE(it.layers.size() == written.layers.size());
    CHECK(it.layers[1].key.levels == written.layers[1].key.levels);
    CHECK(it.layers[1].value_sensitivity == written.layers[1].value_sensitivity);
  });
  CHECK(visits == 1);
}

TEST_CASE("an artifact of none of the datatypes is refused", "[calibrate]") {
  any_artifact it(test::small_artifact<two_bits>());
  it.info.spec = "nuq9";
  auto const found = test::error_of([&] { visit_artifact(it, [](auto const&) { FAIL("visited"); }); });
  CHECK(found.code == errc::bad_format);
  CHECK_THAT(found.text, test::says("unknown format \"nuq9\""));
  test::temporary_folder const folder;
  CHECK(test::error_of([&] { load_any_artifact(folder / "absent.kvq"); }).code == errc::bad_file);
}

}  // namespace
}  // namespace kvquant
