#include "kvquant/cache/page.hpp"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "kvquant/cache/row_major_layout.hpp"
#include "test/support/column_major_layout.hpp"
#include "test/support/random_page.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using nuq3_spec = spec<nuq<3>, nuq<3>>;

struct without_size {
  using spec_type = nuq3_spec;
  static constexpr std::string_view name = "without_size";
  static void write(page_geometry const&, canonical_page<nuq3_spec> const&, std::span<std::byte>) {}
  static void read(page_geometry const&, std::span<std::byte const>, canonical_page<nuq3_spec>&) {}
};

}  // namespace

TEST_CASE("a page of head_dim 128 and 3 bits by hand", "[cache]") {
  auto const it = make_page_geometry(128, 3, 3, 0.01, 0.01);
  CHECK(it.elements() == 8192);
  CHECK(it.k_code_bytes() == 3072);
  CHECK(it.v_code_bytes() == 3072);
  CHECK(it.range_bytes() == 256);
  // 82 slots a side take 656 bytes of the 704 that end on a line; 12 more fit.
  CHECK(it.k_slots == 88);
  CHECK(it.v_slots == 88);
  CHECK(it.slot_bytes() == 704);
  CHECK(it.used_bytes() == 7104);
  CHECK(it.page_bytes() == 7104);
}

TEST_CASE("a page of binary16 numbers is these and nothing else, whatever the outlier fraction", "[cache]") {
  double const fraction = GENERATE(0.0, 0.01, 0.5);
  auto const it = make_page_geometry(128, 16, 16, fraction, fraction);
  CHECK(it.is_exact());
  CHECK(it.page_bytes() == 2 * 2 * 64 * 128);
  CHECK(it.used_bytes() == it.page_bytes());
  CHECK(it.range_bytes() == 0);
  CHECK((it.k_slots == 0 && it.v_slots == 0));
}

TEST_CASE("pages hold codes of up to 8 bits, or binary16 on both sides", "[cache]") {
  STATIC_REQUIRE(PackedSpec<spec<uniform<8>, nuq<2>>>);
  STATIC_REQUIRE(PackedSpec<spec<passthrough, passthrough>>);
  STATIC_REQUIRE_FALSE(PackedSpec<spec<passthrough, uniform<8>>>);
  STATIC_REQUIRE_FALSE(PackedSpec<spec<nuq<2>, passthrough>>);
  for (auto const& [k_bits, v_bits] : {std::pair{16, 8}, {3, 16}, {9, 9}, {15, 15}, {17, 17}, {0, 3}})
    CHECK(error_of([&, k = k_bits, v = v_bits] { make_page_geometry(16, k, v, 0, 0); }).code == errc::bad_value);
}

TEST_CASE("codes take exactly their bits, and a page ends with a line that slots fill", "[cache]") {
  int const head_dim = GENERATE(16, 48, 64, 80, 128, 192, 256);
  int const k_bits = GENERATE(1, 2, 3, 4, 8), v_bits = GENERATE(2, 3, 4, 5);
  double const fraction_k = GENERATE(0.0, 0.001, 0.01, 0.05), fraction_v = GENERATE(0.0, 0.01, 0.03);
  CAPTURE(head_dim, k_bits, v_bits, fraction_k, fraction_v);
  auto const it = make_page_geometry(head_dim, k_bits, v_bits, fraction_k, fraction_v);
  auto const bits = [&](int width) { return it.elements() * static_cast<std::size_t>(width); };
  CHECK(it.elements() == 64 * static_cast<std::size_t>(head_dim));
  CHECK(8 * it.k_code_bytes() == bits(k_bits));
  CHECK(8 * it.v_code_bytes() == bits(v_bits));
  CHECK(it.page_bytes() % page_alignment == 0);
  bool const sparse = fraction_k > 0 || fraction_v > 0;
  CHECK(it.page_bytes() - it.used_bytes() < (sparse ? sizeof(outlier) : page_alignment));

  auto const least = [&](double fraction) { return static_cast<std::size_t>(std::llround(fraction * 64 * head_dim)); };
  CHECK((it.k_slots == 0) == (fraction_k == 0));
  CHECK((it.v_slots == 0) == (fraction_v == 0));
  CHECK(it.k_slots >= least(fraction_k));
  CHECK(it.v_slots >= least(fraction_v));
  std::size_t const extra = it.k_slots + it.v_slots - least(fraction_k) - least(fraction_v);
  CHECK(extra < page_alignment / sizeof(outlier));
  if (fraction_k > 0 && fraction_v > 0)  // what is left of the line is shared, keys first
    CHECK(it.k_slots - least(fraction_k) == (extra + 1) / 2);
}

TEST_CASE("a fraction too small for one element gives no slots", "[cache]") {
  auto const it = make_page_geometry(16, 2, 2, 0.0004, 0.01);  // 0.4 of an element
  CHECK(it.k_slots == 0);
  CHECK(it.v_slots == 16);
}

TEST_CASE("a side has no more slots than elements", "[cache]") {
  auto const it = make_page_geometry(16, 3, 3, 0.998, 0.003);
  CHECK(it.k_slots == it.elements());
  CHECK(it.v_slots >= 3);
}

TEST_CASE("every element of the largest page has an index", "[cache]") {
  auto const it = make_page_geometry(256, 4, 4, 0.01, 0.01);
  CHECK(it.elements() - 1 <= std::numeric_limits<decltype(outlier::index)>::max());
}

TEST_CASE("a page refuses shapes and fractions that cannot be", "[cache]") {
  for (int const head_dim :
       {-16, 0, 8, 24, 100, 272, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}) {
    auto const refused = error_of([&] { make_page_geometry(head_dim, 3, 3, 0, 0); });
    CHECK(refused.code == errc::bad_shape);
    CHECK_THAT(refused.text, says("head_dim is " + std::to_string(head_dim)));
  }
  constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinite = std::numeric_limits<double>::infinity();
  for (double const fraction : {-0.01, 1.0, 1e300, nan, infinite}) {
    CHECK(error_of([&] { make_page_geometry(16, 3, 3, fraction, 0); }).code == errc::bad_value);
    CHECK(error_of([&] { make_page_geometry(16, 3, 3, 0, fraction); }).code == errc::bad_value);
  }
}

TEST_CASE("geometries differ with any of their members", "[cache]") {
  auto const it = make_page_geometry(16, 3, 3, 0.01, 0.01);
  CHECK(it == make_page_geometry(16, 3, 3, 0.01, 0.01));
  CHECK(it != make_page_geometry(32, 3, 3, 0.01, 0.01));
  CHECK(it != make_page_geometry(16, 2, 3, 0.01, 0.01));
  CHECK(it != make_page_geometry(16, 3, 2, 0.01, 0.01));
  CHECK(it != make_page_geometry(16, 3, 3, 0.1, 0.01));
  CHECK(it != make_page_geometry(16, 3, 3, 0.01, 0.1));
}

TEST_CASE("canonical pages differ with any of their elements", "[cache]") {
  auto const geometry = make_page_geometry(16, 3, 3, 0.01, 0.01);
  auto const page = random_page<nuq3_spec>(geometry, 1);
  CHECK((page == random_page<nuq3_spec>(geometry, 1)));
  auto const differs_after = [&](auto change) {
    auto other = page;
    change(other);
    return !(other == page);
  };
  CHECK(differs_after([](auto& it) { it.k_codes[1023] ^= 1; }));
  CHECK(differs_after([](auto& it) { it.v_codes[0] ^= 1; }));
  CHECK(differs_after([](auto& it) { it.v_ranges[63].lower.bits ^= 1; }));
  CHECK(differs_after([](auto& it) { it.v_ranges[0].upper.bits ^= 1; }));
  CHECK(differs_after([](auto& it) { it.k_slots.back().index ^= 1; }));
  CHECK(differs_after([](auto& it) { it.k_slots[0].residual.bits ^= 1; }));
  CHECK(differs_after([](auto& it) { it.v_slots[0].index ^= 1; }));
  CHECK(differs_after([](auto& it) { it.v_slots.back().residual.bits ^= 1; }));
  CHECK(differs_after([](auto& it) { it.v_slots.pop_back(); }));
}

TEST_CASE("layouts are told from what has no page size", "[cache]") {
  STATIC_REQUIRE(PageLayout<row_major_layout<nuq3_spec>>);
  STATIC_REQUIRE(PageLayout<column_major_layout<nuq3_spec>>);
  STATIC_REQUIRE_FALSE(PageLayout<without_size>);
}
