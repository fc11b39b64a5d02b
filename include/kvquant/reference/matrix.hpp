#pragma once
/// \file
/// The reference's vocabulary: Eigen, double precision, one row a token.

#include <Eigen/Core>
#include <cstddef>

#include "kvquant/core/view.hpp"

namespace kvquant::reference {

/// Double precision: rows are tokens.
using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
/// Of levels.
using vector = Eigen::VectorXd;

/// The view's elements, widened.
inline matrix to_matrix(view2d<float const> x) {
  using rows_apart = Eigen::OuterStride<>;
  using source = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Eigen::Map<source const, 0, rows_apart>(x.data, static_cast<Eigen::Index>(x.rows),
                                                 static_cast<Eigen::Index>(x.cols),
                                                 rows_apart(static_cast<Eigen::Index>(x.stride)))
      .cast<double>();
}

}  // namespace kvquant::reference
