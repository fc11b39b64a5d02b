#pragma once
/// \file
/// What quantization means: written to be read, held to be right. Every backend is compared with it.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/quantize/affine.hpp"
#include "kvquant/quantize/outlier.hpp"
#include "kvquant/reference/matrix.hpp"

namespace kvquant::reference {

/// A value kept sparse: what the dense code misses, as it reads from binary16.
struct sparse_residual {
  Eigen::Index token, channel;  ///< where it stands
  double residual;              ///< x − x̂, rounded to binary16
};

/// Keys or values of one layer as a cache holds them.
struct coded_matrix {
  Eigen::MatrixXi codes;                  ///< [tokens, channels]
  matrix scale, zero;                     ///< [1, channels] for keys, [tokens, 1] for values
  vector decode_levels;                   ///< [2^bits]
  std::vector<sparse_residual> outliers;  ///< in any order

  /// x̂ = scale · level[code] + zero, without the outliers' residuals.
  matrix dense() const {
    matrix out(codes.rows(), codes.cols());
    for (Eigen::Index t = 0; t < codes.rows(); ++t)
      for (Eigen::Index c = 0; c < codes.cols(); ++c) {
        Eigen::Index const row = scale.rows() == 1 ? 0 : t, col = scale.cols() == 1 ? 0 : c;
        out(t, c) = scale(row, col) * decode_levels(codes(t, c)) + zero(row, col);
      }
    return out;
  }

  /// X̂ with the residuals of the outliers: what a cache reads as.
  matrix reconstruct() const {
    matrix out = dense();
    for (sparse_residual const& it : outliers) out(it.token, it.channel) += it.residual;
    return out;
  }
};

/// The levels of a codebook: `encode` is compared with, `decode` is read.
struct levels {
  vector encode, decode;  ///< [2^bits]; `encode` rises

  /// Nearest level, the lower one of two equally near. Far outside, where all distances round to the same, the end.
  int nearest(double x) const {
    x = std::clamp(x, encode(0), encode(encode.size() - 1));
    Eigen::Index best = 0;
    for (Eigen::Index i = 1; i < encode.size(); ++i)
      if (std::abs(x - encode(i)) < std::abs(x - encode(best))) best = i;
    return static_cast<int>(best);
  }
};

namespace detail {

inline void set_affine(coded_matrix& out, Eigen::Index row, Eigen::Index col, value_range range) {
  affine const map = affine_of(range);
  out.scale(row, col) = map.scale;
  out.zero(row, col) = map.zero;
}

inline void keep_residual(coded_matrix& out, Eigen::Index token, Eigen::Index channel, double x, double dense) {
  out.outliers.push_back({token, channel, to_float(residual_of(static_cast<float>(x), static_cast<float>(dense)))});
}

}  // namespace detail

/// Keys: one range per channel; values outside it are outliers if `keep_outliers`.
inline coded_matrix quantize_keys(matrix const& k, std::span<value_range const> ranges, levels const& codebook,
                                  bool keep_outliers) {
  require(static_cast<std::size_t>(k.cols()) == ranges.size(), errc::bad_shape, "reference keys: ", k.cols(),
          " channels, ranges of ", ranges.size());
  coded_matrix out{Eigen::MatrixXi(k.rows(), k.cols()), matrix(1, k.cols()), matrix(1, k.cols()), codebook.decode, {}};
  for (Eigen::Index c = 0; c < k.cols(); ++c) {
    value_range const range = ranges[static_cast<std::size_t>(c)];
    detail::set_affine(out, 0, c, range);
    for (Eigen::Index t = 0; t < k.rows(); ++t)
      out.codes(t, c) = codebook.nearest((k(t, c) - out.zero(0, c)) / out.scale(0, c));
  }
  if (!keep_outliers) return out;
  matrix const dense = out.dense();
  for (Eigen::Index t = 0; t < k.rows(); ++t)
    for (Eigen::Index c = 0; c < k.cols(); ++c) {
      value_range const range = ranges[static_cast<std::size_t>(c)];
      if (k(t, c) < range.low() || k(t, c) > range.high()) detail::keep_residual(out, t, c, k(t, c), dense(t, c));
    }
  return out;
}

/// Values: the `round(fraction / 2 · channels)` smallest and largest of each token are outliers, by value and then by
/// channel; the next ones are the token's range.
inline coded_matrix quantize_values(matrix const& v, double outlier_fraction, levels const& codebook) {
  auto const per_side = outliers_per_side(outlier_fraction, static_cast<std::size_t>(v.cols()));
  coded_matrix out{Eigen::MatrixXi(v.rows(), v.cols()), matrix(v.rows(), 1), matrix(v.rows(), 1), codebook.decode, {}};
  std::vector<Eigen::Index> order(static_cast<std::size_t>(v.cols()));
  std::vector<std::pair<Eigen::Index, Eigen::Index>> set_aside;
  for (Eigen::Index t = 0; t < v.rows(); ++t) {
    std::iota(order.begin(), order.end(), Eigen::Index{0});
    std::stable_sort(order.begin(), order.end(), [&](Eigen::Index a, Eigen::Index b) { return v(t, a) < v(t, b); });
    auto const at = [&](std::size_t rank) { return static_cast<float>(v(t, order[rank])); };
    detail::set_affine(out, t, 0, make_range(at(per_side), at(order.size() - 1 - per_side)));
    for (Eigen::Index c = 0; c < v.cols(); ++c)
      out.codes(t, c) = codebook.nearest((v(t, c) - out.zero(t, 0)) / out.scale(t, 0));
    for (std::size_t i = 0; i < per_side; ++i) {
      set_aside.emplace_back(t, order[i]);
      set_aside.emplace_back(t, order[order.size() - 1 - i]);
    }
  }
  std::sort(set_aside.begin(), set_aside.end());
  matrix const dense = out.dense();
  for (auto const& [t, c] : set_aside) detail::keep_residual(out, t, c, v(t, c), dense(t, c));
  return out;
}

/// The first `sinks` tokens as binary16 keeps them, the rest as coded.
inline matrix with_sinks(matrix const& exact, coded_matrix const& coded, int sinks) {
  require(exact.rows() == coded.codes.rows() && exact.cols() == coded.codes.cols(), errc::bad_shape,
          "reference sinks: exact ", exact.rows(), " x ", exact.cols(), ", codes ", coded.codes.rows(), " x ",
          coded.codes.cols(), ", expected the same");
  matrix out = coded.reconstruct();
  for (Eigen::Index t = 0; t < std::min<Eigen::Index>(sinks, exact.rows()); ++t)
    for (Eigen::Index c = 0; c < exact.cols(); ++c) out(t, c) = round_to_half(static_cast<float>(exact(t, c)));
  return out;
}

}  // namespace kvquant::reference
