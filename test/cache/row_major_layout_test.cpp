#include "kvquant/cache/row_major_layout.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "test/support/column_major_layout.hpp"
#include "test/support/random_page.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using written_specs = type_list<spec<nuq<2>, nuq<2>>, spec<nuq<3>, nuq<3>>, spec<nuq<4>, nuq<4>>,
                                spec<uniform<8>, normal_float<3>>, spec<nuq<2>, uniform<5>>, spec<adaptive, adaptive>,
                                spec<nuq<3>, adaptive>, spec<passthrough, passthrough>>;

template <Spec S>
page_geometry geometry_of(int head_dim, double fraction_k, double fraction_v) {
  return make_page_geometry(head_dim, S::key_format::bits, S::value_format::bits, fraction_k, fraction_v);
}

/// Written over ones, so that bytes left out would show.
template <class Layout>
std::vector<std::byte> written(page_geometry const& geometry, canonical_page<typename Layout::spec_type> const& page) {
  std::vector<std::byte> bytes(Layout::page_bytes(geometry), std::byte{0xff});
  Layout::write(geometry, page, bytes);
  return bytes;
}

template <class Layout>
void check_round_trip(page_geometry const& geometry) {
  using S = typename Layout::spec_type;
  auto const page = random_page<S>(geometry, 1);
  auto const bytes = written<Layout>(geometry, page);
  auto read = random_page<S>(geometry, 2);
  Layout::read(geometry, bytes, read);
  CHECK((read == page));
  CHECK(written<Layout>(geometry, read) == bytes);
}

std::uint16_t number_at(std::vector<std::byte> const& bytes, std::size_t at) {
  return static_cast<std::uint16_t>(static_cast<unsigned>(bytes[at]) | static_cast<unsigned>(bytes[at + 1]) << 8);
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("pages come back from either layout as they were", "[cache]", written_specs) {
  int const head_dim = GENERATE(16, 80, 128, 256);
  auto const [fraction_k, fraction_v] = GENERATE(table<double, double>({{0, 0}, {0.01, 0.01}, {0.03, 0}, {0, 0.02}}));
  sized_page<TestType> const sized(head_dim, fraction_k, fraction_v);
  check_round_trip<row_major_layout<TestType>>(sized.geometry);
  if constexpr (!is_by_channel<typename TestType::key_format> && !is_by_channel<typename TestType::value_format>)
    check_round_trip<column_major_layout<TestType>>(sized.geometry);
}

TEST_CASE("a row-major page bit by bit", "[cache]") {
  using S = spec<nuq<3>, nuq<2>>;
  auto const geometry = geometry_of<S>(16, 0.005, 0.002);
  REQUIRE((geometry.k_slots == 10 && geometry.v_slots == 6));
  canonical_page<S> page(geometry);
  page.k_codes[0] = 5;
  page.k_codes[2] = 6;  // bits 6 to 8: across two bytes
  page.k_codes[1023] = 7;
  page.v_codes[5] = 2;
  page.v_ranges[1] = {{0x1234}, {0x5678}};
  page.k_slots[9] = {1022, {0xabcd}};
  page.v_slots[0] = {0x0102, {0x0304}};

  std::vector<std::byte> expected(384 + 256 + 256 + 64);
  expected[0] = std::byte{0b10000101};
  expected[1] = std::byte{0b1};
  expected[383] = std::byte{0b11100000};
  expected[384 + 1] = std::byte{0b1000};
  auto const put = [&](std::size_t at, std::uint16_t number) {
    expected[at] = static_cast<std::byte>(number & 0xff);
    expected[at + 1] = static_cast<std::byte>(number >> 8);
  };
  put(384 + 256 + 4, 0x1234);
  put(384 + 256 + 6, 0x5678);
  put(384 + 512 + 36, 1022);
  put(384 + 512 + 38, 0xabcd);
  put(384 + 512 + 40, 0x0102);
  put(384 + 512 + 42, 0x0304);
  CHECK(written<row_major_layout<S>>(geometry, page) == expected);
}

TEST_CASE("a row-major page of binary16 numbers has the keys' bytes, then the values'", "[cache]") {
  using S = spec<passthrough, passthrough>;
  auto const geometry = geometry_of<S>(16, 0.01, 0.01);
  auto const page = random_page<S>(geometry, 6);
  auto const bytes = written<row_major_layout<S>>(geometry, page);
  REQUIRE(bytes.size() == 2 * 2 * 1024);
  for (std::size_t i : {0u, 1u, 1023u}) {
    CHECK(number_at(bytes, 2 * i) == page.k_codes[i]);
    CHECK(number_at(bytes, 2 * (1024 + i)) == page.v_codes[i]);
  }
}

TEST_CASE("the end of a row-major page's last line is zero", "[cache]") {
  using S = spec<nuq<2>, nuq<2>>;
  page_geometry geometry = geometry_of<S>(16, 0, 0);
  geometry.k_slots = 3;
  REQUIRE(geometry.page_bytes() - geometry.used_bytes() == 52);
  auto const bytes = written<row_major_layout<S>>(geometry, random_page<S>(geometry, 3));
  CHECK(std::vector(bytes.end() - 52, bytes.end()) == std::vector<std::byte>(52));
  check_round_trip<row_major_layout<S>>(geometry);
}

TEST_CASE("another layout has other bytes, and the same page", "[cache]") {
  using S = spec<nuq<3>, nuq<3>>;
  auto const geometry = geometry_of<S>(16, 0.02, 0.02);
  auto const page = random_page<S>(geometry, 4);
  auto const rows = written<row_major_layout<S>>(geometry, page),
             columns = written<column_major_layout<S>>(geometry, page);
  CHECK(columns.size() == rows.size() + page_alignment);
  CHECK(number_at(rows, 2 * 384 + 256) == page.k_slots[0].index);
  CHECK(number_at(columns, 0) % 16 <= number_at(columns, sizeof(outlier)) % 16);
}

TEST_CASE("a row-major page refuses other sizes and codes", "[cache]") {
  using S = spec<nuq<2>, nuq<3>>;
  using layout = row_major_layout<S>;
  auto const geometry = geometry_of<S>(16, 0.01, 0.01);
  auto page = random_page<S>(geometry, 5);
  std::vector<std::byte> bytes(layout::page_bytes(geometry));
  for (std::size_t const size : {std::size_t{0}, bytes.size() - 1, bytes.size() + 1}) {
    std::vector<std::byte> other(size);
    CHECK(error_of([&] { layout::write(geometry, page, other); }).code == errc::bad_shape);
    auto const refused = error_of([&] { layout::read(geometry, other, page); });
    CHECK(refused.code == errc::bad_shape);
    CHECK_THAT(refused.text, says(std::to_string(size) + " bytes, expected " + std::to_string(bytes.size())));
  }
  auto const complaint_after = [&](auto change) {
    auto other = page;
    change(other);
    return error_of([&] { layout::write(geometry, other, bytes); }).code;
  };
  CHECK(complaint_after([](auto& it) { it.k_codes.resize(1000); }) == errc::bad_shape);
  CHECK(complaint_after([](auto& it) { it.v_codes.resize(4096); }) == errc::bad_shape);
  CHECK(complaint_after([](auto& it) { it.k_slots.pop_back(); }) == errc::bad_shape);
  CHECK(complaint_after([](auto& it) { it.v_slots.push_back({}); }) == errc::bad_shape);
  CHECK(complaint_after([](auto& it) { it.k_codes[7] = 4; }) == errc::bad_value);
  canonical_page<S> empty;
  CHECK(error_of([&] { layout::read(geometry, bytes, empty); }).code == errc::bad_shape);
}
