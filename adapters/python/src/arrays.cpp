#include "adapters/python/src/arrays.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kvquant/core/bfloat16.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant::python {

namespace {

enum class number { f32, f16, bf16 };

[[noreturn]] void wrong_type(std::string const& what) { throw nb::type_error(what.c_str()); }
[[noreturn]] void wrong_value(std::string const& what) { throw nb::value_error(what.c_str()); }

std::string name_of(nb::dlpack::dtype type) {
  using code = nb::dlpack::dtype_code;
  std::string const bits = std::to_string(type.bits);
  switch (static_cast<code>(type.code)) {
    case code::Int: return "int" + bits;
    case code::UInt: return "uint" + bits;
    case code::Float: return "float" + bits;
    case code::Bfloat: return "bfloat" + bits;
    case code::Complex: return "complex" + bits;
    case code::Bool: return "bool";
    default: return text("of DLPack's code ", int{type.code}, ", ", bits, " bits");
  }
}

number number_of(nb::dlpack::dtype type, char const* name) {
  using code = nb::dlpack::dtype_code;
  auto const is = [&](code wanted, int bits) {
    return type.code == static_cast<std::uint8_t>(wanted) && type.bits == bits && type.lanes == 1;
  };
  if (is(code::Float, 32)) return number::f32;
  if (is(code::Float, 16)) return number::f16;
  if (is(code::Bfloat, 16)) return number::bf16;
  wrong_type(text(name, ": dtype ", name_of(type), ", expected float32, float16 or bfloat16"));
}

template <class Array>
std::vector<std::size_t> shape_of(Array const& array) {
  std::vector<std::size_t> shape(array.ndim());
  for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = array.shape(i);
  return shape;
}

template <class Array>
std::string strides_of(Array const& array) {
  std::string all;
  for (std::size_t i = 0; i < array.ndim(); ++i) all += (i == 0 ? "" : ", ") + std::to_string(array.stride(i));
  return "(" + all + ")";
}

/// Any array that a framework shows through DLPack or the buffer protocol.
template <class Array>
Array borrow_array(nb::handle given, char const* name) {
  auto const type = [&] { return std::string(nb::type_name(given.type()).c_str()); };
  // Nothing here is differentiable: some versions of torch let such a tensor out, others do not.
  if (nb::cast<bool>(nb::bool_(nb::getattr(given, "requires_grad", nb::none()))))
    wrong_value(text(name, ": a ", type(), " that requires a gradient, expected it after .detach()"));
  Array array;
  if (!nb::try_cast(given, array))
    wrong_type(text(name, ": a ", type(), ", expected an array that can be ", Array::ReadOnly ? "read" : "written",
                    " through DLPack or the buffer protocol, of NumPy or torch, say"));
  if (array.device_type() != nb::device::cpu::value)
    wrong_value(text(name, ": an array on DLPack's device type ", array.device_type(), ", expected one on the CPU"));
  return array;
}

/// The rows that an array of [rows, heads, head_dim] or [rows, channels] has: their number and their stride.
template <class Array>
std::pair<std::size_t, std::size_t> rows_of(Array const& array, row_shape const& expected) {
  std::vector<std::size_t> const shape = shape_of(array);
  bool const by_heads = shape.size() == 3 && shape[1] == expected.heads && shape[2] == expected.head_dim;
  bool const flat = shape.size() == 2 && shape[1] == expected.channels();
  if (!by_heads && !flat)
    wrong_value(text(expected.name, ": shape ", to_string(shape), ", expected (rows, ", expected.heads, ", ",
                     expected.head_dim, ") or (rows, ", expected.channels(), ")"));
  auto const channels = static_cast<std::int64_t>(expected.channels());
  auto const fits = [&](std::size_t dimension, std::int64_t stride) {
    return shape[dimension] <= 1 || array.stride(dimension) == stride;
  };
  bool const dense =
      shape[0] == 0 || (flat ? fits(1, 1) : fits(2, 1) && fits(1, static_cast<std::int64_t>(expected.head_dim)));
  bool const apart = shape[0] <= 1 || array.stride(0) >= channels;
  if (!dense || !apart)
    wrong_value(text(expected.name, ": shape ", to_string(shape), " with strides ", strides_of(array),
                     " in elements, expected the ", channels, " channels of a row side by side, and rows at least ",
                     channels, " apart (a contiguous copy has that)"));
  return {shape[0], shape[0] <= 1 ? expected.channels() : static_cast<std::size_t>(array.stride(0))};
}

template <class T>
T* data_of(void* data, std::uint64_t byte_offset, char const* name) {
  auto const address = reinterpret_cast<std::uintptr_t>(data) + byte_offset;
  if (address % alignof(T) != 0) wrong_value(text(name, ": memory at an address that is no multiple of ", alignof(T)));
  return reinterpret_cast<T*>(address);
}

template <class T>
void convert(view2d<T const> from, std::vector<float>& to) {
  to.resize(from.rows * from.cols);
  auto at = to.begin();
  for (std::size_t row = 0; row < from.rows; ++row)
    at = std::transform(from.row(row).begin(), from.row(row).end(), at, [](T x) { return to_float(x); });
}

}  // namespace

std::string to_string(std::vector<std::size_t> const& shape) {
  std::string all;
  for (std::size_t i = 0; i < shape.size(); ++i) all += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return "(" + all + (shape.size() == 1 ? ",)" : ")");
}

input_rows::input_rows(nb::handle given, row_shape const& expected)
    : array_(borrow_array<nb::ndarray<nb::ro>>(given, expected.name)) {
  number const type = number_of(array_.dtype(), expected.name);
  auto const [rows, stride] = rows_of(array_, expected);
  std::size_t const channels = expected.channels();
  auto const view = [&, count = rows, apart = stride]<class T>(T*) {
    return view2d<T const>(data_of<T const>(array_.data_handle(), array_.byte_offset(), expected.name), count, channels,
                           apart);
  };
  if (type == number::f32) {
    view_ = view(static_cast<float*>(nullptr));
    return;
  }
  if (type == number::f16)
    convert(view(static_cast<half*>(nullptr)), converted_);
  else
    convert(view(static_cast<bfloat16*>(nullptr)), converted_);
  view_ = {converted_.data(), rows, channels};
}

output_rows::output_rows(nb::handle out, row_shape const& expected, std::size_t rows, bool by_heads) {
  if (out.is_none()) {
    made_.emplace(by_heads ? std::vector{rows, expected.heads, expected.head_dim}
                           : std::vector{rows, expected.channels()});
    view_ = {made_->data(), rows, expected.channels()};
    return;
  }
  array_ = borrow_array<nb::ndarray<>>(out, expected.name);
  if (array_.dtype() != nb::dtype<float>())
    wrong_type(text(expected.name, ": dtype ", name_of(array_.dtype()), ", expected float32"));
  auto const [given_rows, stride] = rows_of(array_, expected);
  if (given_rows != rows) wrong_value(text(expected.name, ": ", given_rows, " rows, expected ", rows));
  given_ = nb::borrow(out);
  view_ = {data_of<float>(array_.data_handle(), array_.byte_offset(), expected.name), rows, expected.channels(),
           stride};
}

std::vector<float> read_array(nb::handle given, char const* name, std::vector<std::size_t> const& shape) {
  auto const array = borrow_array<nb::ndarray<nb::ro>>(given, name);
  if (number_of(array.dtype(), name) != number::f32)
    wrong_type(text(name, ": dtype ", name_of(array.dtype()), ", expected float32"));
  if (shape_of(array) != shape)
    wrong_value(text(name, ": shape ", to_string(shape_of(array)), ", expected ", to_string(shape)));
  std::size_t size = 1;
  for (std::size_t i = shape.size(); i-- > 0; size *= shape[i])
    if (shape[i] > 1 && array.stride(i) != static_cast<std::int64_t>(size))
      wrong_value(text(name, ": strides ", strides_of(array), " in elements, expected a contiguous array"));
  auto const* const data = data_of<float const>(array.data_handle(), array.byte_offset(), name);
  for (std::size_t i = 0; i < size; ++i)
    require(std::isfinite(data[i]), errc::bad_value, name, ": element ", i, " is ", data[i],
            ", expected a finite number");
  return {data, data + size};
}

}  // namespace kvquant::python
