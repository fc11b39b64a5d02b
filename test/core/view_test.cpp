#include "kvquant/core/view.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <numeric>
#include <type_traits>
#include <vector>

namespace {

using namespace kvquant;

/// 0, 1, 2 …: an element tells where it lies.
std::vector<float> counted(std::size_t count) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), 0.0f);
  return values;
}

/// Row by row, through operator().
template <class T>
std::vector<float> elements(view2d<T> x) {
  std::vector<float> out;
  for (std::size_t r = 0; r < x.rows; ++r)
    for (std::size_t c = 0; c < x.cols; ++c) out.push_back(x(r, c));
  return out;
}

}  // namespace

TEST_CASE("rows lie a stride apart, by default as close as they can", "[core]") {
  auto values = counted(12);
  view2d<float> const dense(values.data(), 3, 4);
  CHECK(dense.stride == 4);
  CHECK(elements(dense) == values);
  view2d<float> const spaced(values.data() + 1, 2, 3, 7);
  CHECK(elements(spaced) == std::vector<float>{1, 2, 3, 8, 9, 10});
}

TEST_CASE("a row is a span of its columns, without what lies between rows", "[core]") {
  auto values = counted(12);
  view2d<float> const x(values.data(), 2, 3, 7);
  auto const row = x.row(1);
  STATIC_REQUIRE(std::is_same_v<decltype(row), std::span<float> const>);
  CHECK(std::vector(row.begin(), row.end()) == std::vector<float>{7, 8, 9});
  row[2] = -1;
  CHECK(values[9] == -1);
  CHECK(&x(1, 2) == &values[9]);
}

TEST_CASE("middle rows and columns are views into the same matrix, in either order", "[core]") {
  auto values = counted(30);
  view2d<float> const x(values.data(), 5, 4, 6);
  CHECK(elements(x.middle_rows(1, 2)) == std::vector<float>{6, 7, 8, 9, 12, 13, 14, 15});
  CHECK(elements(x.middle_cols(1, 2)) == std::vector<float>{1, 2, 7, 8, 13, 14, 19, 20, 25, 26});
  view2d<float> const block = x.middle_rows(2, 3).middle_cols(3, 1);
  CHECK(elements(block) == std::vector<float>{15, 21, 27});
  CHECK(elements(x.middle_cols(3, 1).middle_rows(2, 3)) == elements(block));
  block(0, 0) = -5;
  CHECK(values[15] == -5);
}

TEST_CASE("a middle may be everything or nothing", "[core]") {
  auto values = counted(12);
  view2d<float> const x(values.data(), 3, 4);
  CHECK(elements(x.middle_rows(0, 3).middle_cols(0, 4)) == values);
  CHECK(x.middle_rows(3, 0).empty());
  CHECK(x.middle_cols(4, 0).empty());
  CHECK(x.middle_cols(4, 0).rows == 3);
}

TEST_CASE("a view is empty where it has no rows or no columns", "[core]") {
  float value = 0;
  CHECK(view2d<float>().empty());
  CHECK(view2d<float>().data == nullptr);
  CHECK(view2d<float>(&value, 0, 1).empty());
  CHECK(view2d<float>(&value, 1, 0).empty());
  CHECK_FALSE(view2d<float>(&value, 1, 1).empty());
}

TEST_CASE("a view to write through becomes one to read through, never the reverse", "[core]") {
  auto values = counted(14);
  view2d<float> const writable(values.data(), 2, 3, 7);
  view2d<float const> const readable = writable;
  CHECK(readable.stride == 7);
  CHECK(elements(readable) == elements(writable));
  writable(1, 0) = 42;
  CHECK(readable(1, 0) == 42);
  STATIC_REQUIRE_FALSE(std::is_convertible_v<view2d<float const>, view2d<float>>);
  STATIC_REQUIRE_FALSE(std::is_convertible_v<view2d<float>, view2d<double const>>);
  STATIC_REQUIRE(std::is_same_v<decltype(readable(0, 0)), float const&>);
}

TEST_CASE("views work at compile time and travel as bytes", "[core]") {
  constexpr auto corner_sum = [] {
    std::array<int, 12> values{};
    std::iota(values.begin(), values.end(), 0);
    view2d<int const> const x(values.data(), 3, 3, 4);
    return x(0, 0) + x(2, 2) + x.middle_rows(1, 2).middle_cols(1, 2)(0, 0) + x.row(2)[1];
  };
  STATIC_REQUIRE(corner_sum() == 0 + 10 + 5 + 9);
  STATIC_REQUIRE(std::is_trivially_copyable_v<view2d<double>>);
}
