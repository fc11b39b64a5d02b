#include "kvquant/format/formats.hpp"

#include <catch2/catch.hpp>
#include <set>
#include <string>
#include <type_traits>

#include "kvquant/core/error.hpp"
#include "kvquant/core/type_list.hpp"

namespace {

using namespace kvquant;

errc code_of(auto&& f) {
  try {
    f();
  } catch (error const& caught) {
    return caught.code;
  }
  FAIL("nothing was thrown");
  return {};
}

}  // namespace

TEST_CASE("every format of the list is found by its own name, which no other has", "[format]") {
  std::set<std::string> names;
  for_each_type(formats{}, [&]<class F>(std::type_identity<F>) {
    std::string const name = to_string(format_id_of<F>);
    CHECK(names.insert(name).second);
    format_id const parsed = parse_format(name);
    CHECK(parsed == format_id_of<F>);
    int visits = 0;
    visit_format(parsed, [&]<class Found>(std::type_identity<Found>) {
      ++visits;
      CHECK(std::is_same_v<Found, F>);
    });
    CHECK(visits == 1);
  });
  CHECK(names.size() == formats::size);
  for (char const* name : {"nuq2", "nuq3", "nuq4", "nf2", "nf3", "nf4", "int2", "int8", "f16"})
    CHECK(names.count(name));
}

TEST_CASE("an unknown format is an error that lists the known ones", "[format]") {
  auto const visit = [](format_id id) { visit_format(id, []<class F>(std::type_identity<F>) { FAIL("visited"); }); };
  CHECK_THROWS_WITH(visit({"nuq", 9}),
                    Catch::Contains("\"nuq9\"") && Catch::Contains("nuq2, nuq3, nuq4, nf2") && Catch::EndsWith("f16"));
  CHECK(code_of([&] { visit({"", 0}); }) == errc::bad_format);
  for (char const* name : {"", "nuq", "3", "nuq03", "nuq3 ", "NUQ3", "nuq33", "nuq-3"}) {
    CAPTURE(name);
    CHECK(code_of([&] { parse_format(name); }) == errc::bad_format);
  }
}
