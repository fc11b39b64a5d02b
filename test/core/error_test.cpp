#include "kvquant/core/error.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>

namespace {

using namespace kvquant;

constexpr std::array all_codes{errc::bad_shape,    errc::bad_value,   errc::bad_format, errc::bad_file,
                               errc::out_of_pages, errc::unsupported, errc::device};

constexpr int checked(int x) {
  require(x > 0, errc::bad_value, "x is ", x, ", expected more than 0");
  return x;
}

}  // namespace

TEST_CASE("each error code has a name of its own", "[core]") {
  std::set<std::string_view> names;
  for (errc const code : all_codes) {
    CHECK(to_string(code) != "unknown");
    names.insert(to_string(code));
  }
  CHECK(names.size() == all_codes.size());
  CHECK(to_string(errc::out_of_pages) == "out_of_pages");
  CHECK(to_string(static_cast<errc>(99)) == "unknown");
}

TEST_CASE("text joins what it is given as it prints", "[core]") {
  CHECK(text("").empty());
  CHECK(text("layer ", 3, ", ", std::string("keys"), ": ", -0.5, '/', std::string_view("x")) ==
        "layer 3, keys: -0.5/x");
}

TEST_CASE("a requirement that holds does nothing, at compile time too", "[core]") {
  STATIC_REQUIRE(checked(3) == 3);
  CHECK_NOTHROW(require(true, errc::device, "never seen"));
}

TEST_CASE("a requirement that fails throws its code and its text", "[core]") {
  try {
    checked(-7);
    FAIL("nothing thrown");
  } catch (error const& caught) {
    CHECK(caught.code == errc::bad_value);
    CHECK(std::string(caught.what()) == "x is -7, expected more than 0");
  }
}

TEST_CASE("errors are caught as what the standard library throws, and copies keep everything", "[core]") {
  CHECK_THROWS_AS(require(false, errc::unsupported, "x"), std::runtime_error);
  error const original{errc::bad_file, "a.kvq: cannot be read"};
  error const copy = original;
  CHECK(copy.code == errc::bad_file);
  CHECK(std::string(copy.what()) == "a.kvq: cannot be read");
}
