#pragma once
/// \file
/// Matrices as the interface is given them.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "adapters/c/status.hpp"
#include "kvquant/core/bfloat16.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/view.hpp"

namespace kvquant::c {

/// Throws `bad_shape` or `bad_value` for what cannot be `rows` x `cols` elements of type `T` in memory.
template <class T>
view2d<T> checked_rows(T* data, std::size_t rows, std::size_t cols, std::size_t stride, char const* what) {
  if (stride == 0) stride = cols;
  require(stride >= cols, errc::bad_shape, what, ": a stride of ", stride, " elements, expected at least the ", cols,
          " of a row, or 0");
  require(rows <= std::numeric_limits<std::size_t>::max() / sizeof(T) / stride, errc::bad_shape, what, ": ", rows,
          " rows, ", stride, " elements apart, are more than memory has");
  require(rows == 0 || data != nullptr, errc::bad_value, what, " is NULL, expected ", rows, " rows of ", cols);
  require(reinterpret_cast<std::uintptr_t>(data) % alignof(T) == 0, errc::bad_value, what, " is not aligned to ",
          alignof(T), " bytes");
  return {data, rows, cols, stride};
}

/// Rows of any type to be read as float; what is not float is converted once, exactly.
class input_rows {
 public:
  input_rows(void const* data, kvquant_dtype dtype, std::size_t rows, std::size_t cols, std::size_t stride,
             char const* what) {
    switch (dtype) {
      case KVQUANT_F32: view_ = checked_rows(static_cast<float const*>(data), rows, cols, stride, what); break;
      case KVQUANT_F16: convert(checked_rows(static_cast<half const*>(data), rows, cols, stride, what)); break;
      case KVQUANT_BF16: convert(checked_rows(static_cast<bfloat16 const*>(data), rows, cols, stride, what)); break;
      default:
        throw error{errc::bad_format,
                    text(what, ": dtype ", dtype, ", expected KVQUANT_F32, KVQUANT_F16 or KVQUANT_BF16")};
    }
  }
  input_rows(input_rows&&) noexcept = default;  // a vector keeps its memory when it is moved

  view2d<float const> view() const { return view_; }

 private:
  template <class T>
  void convert(view2d<T const> from) {
    converted_.reserve(from.rows * from.cols);
    for (std::size_t row = 0; row < from.rows; ++row)
      for (T const x : from.row(row)) converted_.push_back(to_float(x));
    view_ = {converted_.data(), from.rows, from.cols};
  }

  std::vector<float> converted_;
  view2d<float const> view_;
};

}  // namespace kvquant::c
