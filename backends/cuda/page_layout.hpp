#pragma once
/// \file
/// How the pages of a spec lie, and who stores them.

#include "backends/cuda/appender.hpp"
#include "backends/cuda/fragment_layout.hpp"
#include "kvquant/cache/row_major_layout.hpp"

namespace kvquant::cuda {

namespace detail {
template <FragmentSpec S>
struct appended_fragment_layout : fragment_layout<S> {
  using appender = cuda::appender<S>;
};

template <class S>
struct layout_for {
  using type = row_major_layout<S>;  // attention over it is refused
};
template <FragmentSpec S>
struct layout_for<S> {
  using type = appended_fragment_layout<S>;
};
}  // namespace detail

template <PackedSpec S>
using page_layout = typename detail::layout_for<S>::type;

}  // namespace kvquant::cuda
