#pragma once
/// \file
/// Matrix products with weights that stay in their GGUF blocks.

#include <cstddef>
#include <vector>

#include "kvquant/core/executor.hpp"
#include "kvquant/core/view.hpp"
#include "runtime/gguf.hpp"

namespace kvquant::runtime {

/// Scratch for one thread of control: some rows of a weight matrix as floats.
class weight_scratch {
 public:
  /// Rows [first, first + count) of `weight`, [count, weight.cols()]. Valid until the next call.
  view2d<float const> rows(gguf_tensor const& weight, std::size_t first, std::size_t count, executor_ref executor);

 private:
  std::vector<float> values_;
};

/// What a product does with its output.
enum class accumulate { no, yes };

/// out = x · Wᵀ (or is increased by it). x [tokens, n_in], W [n_out, n_in], out [tokens, n_out].
void multiply(view2d<float const> x, gguf_tensor const& weight, view2d<float> out, accumulate mode,
              weight_scratch& scratch, executor_ref executor);

/// dx = dy · W (or is increased by it): the transpose of `multiply`. dy [tokens, n_out], dx [tokens, n_in].
void multiply_back(view2d<float const> dy, gguf_tensor const& weight, view2d<float> dx, accumulate mode,
                   weight_scratch& scratch, executor_ref executor);

/// C = alpha · A · op(B) + beta · C on the calling thread; op transposes B if `transpose_b`.
void matrix_product(view2d<float const> a, view2d<float const> b, bool transpose_b, float alpha, float beta,
                    view2d<float> c);
/// C = alpha · Aᵀ · B + beta · C on the calling thread.
void transposed_matrix_product(view2d<float const> a, view2d<float const> b, float alpha, float beta, view2d<float> c);

}  // namespace kvquant::runtime
