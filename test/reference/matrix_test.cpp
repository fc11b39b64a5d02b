#include "kvquant/reference/matrix.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <limits>
#include <vector>

#include "test/support/random_matrix.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;

void check_same(reference::matrix const& wide, view2d<float const> x) {
  REQUIRE(static_cast<std::size_t>(wide.rows()) == x.rows);
  REQUIRE(static_cast<std::size_t>(wide.cols()) == x.cols);
  for (std::size_t r = 0; r < x.rows; ++r)
    for (std::size_t c = 0; c < x.cols; ++c)
      CHECK(wide(static_cast<Eigen::Index>(r), static_cast<Eigen::Index>(c)) == static_cast<double>(x(r, c)));
}

}  // namespace

TEST_CASE("a view widens element by element, whatever its stride", "[reference]") {
  auto const x = random_keys(7, 12, 1);
  check_same(reference::to_matrix(x), x);
  auto const block = x.view().middle_rows(2, 4).middle_cols(5, 3);
  check_same(reference::to_matrix(block), block);
  check_same(reference::to_matrix(x.view().middle_cols(11, 1)), x.view().middle_cols(11, 1));
}

TEST_CASE("widening copies and changes no value", "[reference]") {
  float_matrix x(1, 3);
  x(0, 0) = std::numeric_limits<float>::denorm_min();
  x(0, 1) = -std::numeric_limits<float>::max();
  x(0, 2) = 0.1f;
  auto const wide = reference::to_matrix(x);
  check_same(wide, x);
  x(0, 2) = 5;
  CHECK(wide(0, 2) == static_cast<double>(0.1f));
}

TEST_CASE("an empty view widens to an empty matrix", "[reference]") {
  CHECK(reference::to_matrix({}).size() == 0);
  auto const none = reference::to_matrix(random_keys(3, 5, 2).view().middle_rows(3, 0));
  CHECK(none.rows() == 0);
  CHECK(none.cols() == 5);
}

TEST_CASE("tokens are rows and lie one after another", "[reference]") {
  STATIC_REQUIRE(reference::matrix::IsRowMajor);
  auto const wide = reference::to_matrix(random_keys(3, 4, 3));
  CHECK(wide.row(1).data() == wide.data() + 4);
}
