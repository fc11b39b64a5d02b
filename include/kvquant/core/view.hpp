#pragma once
/// \file
/// A row-major matrix that somebody else owns (`std::mdspan` is C++23).

#include <cstddef>
#include <span>
#include <type_traits>

#include "kvquant/core/config.hpp"

namespace kvquant {

/// `rows` × `cols` elements; row `r` starts at `data + r * stride` (stride in elements, at least `cols`). Trivially
/// copyable, so that it can be a kernel argument.
template <class T>
struct view2d {
  T* data = nullptr;       ///< row 0, column 0
  std::size_t rows = 0;    ///< how many
  std::size_t cols = 0;    ///< elements of a row that are seen
  std::size_t stride = 0;  ///< elements from a row to the next

  constexpr view2d() = default;
  /// Rows that follow each other without gaps.
  KVQ_HD constexpr view2d(T* d, std::size_t r, std::size_t c) : data(d), rows(r), cols(c), stride(c) {}
  /// Rows that are `s` elements apart.
  KVQ_HD constexpr view2d(T* d, std::size_t r, std::size_t c, std::size_t s) : data(d), rows(r), cols(c), stride(s) {}
  /// A view to read through, of what another may write.
  template <class U>
  requires std::is_same_v<U const, T> KVQ_HD constexpr view2d(view2d<U> const& other)
      : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride) {}

  /// The element in row `r`, column `c`; not checked.
  KVQ_HD constexpr T& operator()(std::size_t r, std::size_t c) const { return data[r * stride + c]; }
  /// One row; not checked.
  constexpr std::span<T> row(std::size_t r) const { return {data + r * stride, cols}; }
  /// Whether there is no element.
  KVQ_HD constexpr bool empty() const { return rows == 0 || cols == 0; }

  /// Rows [first, first + count).
  KVQ_HD constexpr view2d middle_rows(std::size_t first, std::size_t count) const {
    return {data + first * stride, count, cols, stride};
  }
  /// Columns [first, first + count): the channels of a KV head, say.
  KVQ_HD constexpr view2d middle_cols(std::size_t first, std::size_t count) const {
    return {data + first, rows, count, stride};
  }
};

static_assert(std::is_trivially_copyable_v<view2d<float const>>);

}  // namespace kvquant
