#pragma once
/// \file
/// Arrays of whatever framework as the library's views: rows of float32 without a copy, and NumPy arrays of our own.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvquant/core/view.hpp"

namespace kvquant::python {

namespace nb = nanobind;

/// What an argument should be: [rows, heads, head_dim] or [rows, heads · head_dim].
struct row_shape {
  char const* name;
  std::size_t heads = 0, head_dim = 0;

  std::size_t channels() const { return heads * head_dim; }
};

/// An argument to read: float32 in place, float16 and bfloat16 converted. Throws `TypeError` for what is no array of
/// such numbers, `ValueError` for another shape, strides that a view cannot have, or a device that is not the CPU.
class input_rows {
 public:
  input_rows(nb::handle given, row_shape const& expected);

  view2d<float const> view() const { return view_; }
  std::size_t rows() const { return view_.rows; }
  /// Whether it has a dimension of heads.
  bool by_heads() const { return array_.ndim() == 3; }

 private:
  nb::ndarray<nb::ro> array_;  // keeps the memory
  std::vector<float> converted_;
  view2d<float const> view_;
};

/// A new NumPy array; `data()` is its memory, uninitialised.
template <class T>
class new_array {
 public:
  explicit new_array(std::vector<std::size_t> shape) : shape_(std::move(shape)) {
    std::size_t size = 1;
    for (std::size_t const extent : shape_) size *= extent;
    auto memory = std::make_unique_for_overwrite<T[]>(size);
    owner_ = nb::capsule(memory.get(), [](void* data) noexcept { delete[] static_cast<T*>(data); });
    data_ = memory.release();
  }
  T* data() const { return data_; }
  nb::object python() const { return nb::cast(nb::ndarray<nb::numpy, T>(data_, shape_.size(), shape_.data(), owner_)); }

 private:
  std::vector<std::size_t> shape_;
  nb::capsule owner_;
  T* data_ = nullptr;
};

/// A NumPy array of what `values` has, whose shape holds as many.
template <class T, class Values>
nb::object to_numpy(Values const& values, std::vector<std::size_t> shape) {
  new_array<T> const made(std::move(shape));
  T* to = made.data();
  for (auto const& value : values) *to++ = static_cast<T>(value);
  return made.python();
}

/// Where results go: the caller's `out` (writable float32, of the same shapes), or a new NumPy array.
class output_rows {
 public:
  output_rows(nb::handle out, row_shape const& expected, std::size_t rows, bool by_heads);

  view2d<float> view() const { return view_; }
  /// `out` itself where it was given.
  nb::object python() const { return given_.is_valid() ? given_ : made_->python(); }

 private:
  nb::object given_;
  nb::ndarray<> array_;
  std::optional<new_array<float>> made_;
  view2d<float> view_;
};

/// "(3, 5, 64)"
std::string to_string(std::vector<std::size_t> const& shape);

/// A float32 array of just that shape, contiguous, as values. Throws as `input_rows` does.
std::vector<float> read_array(nb::handle given, char const* name, std::vector<std::size_t> const& shape);

}  // namespace kvquant::python
