#include "runtime/linear.hpp"

#include <cblas.h>

#include <algorithm>
#include <mutex>

#include "kvquant/core/error.hpp"
#include "runtime/tensor_type.hpp"

namespace kvquant::runtime {

namespace {

// Tiles do not depend on the number of workers, so neither do the bits of the result.
constexpr std::size_t tile_tokens = 128, tile_outputs = 2048;
// Rows of weights that are floats at the same time: 8192 of 4096 make 128 MiB.
constexpr std::size_t chunk_rows = 8192;
constexpr std::size_t dequantize_rows = 64;

/// BLAS must not start threads of its own: the executor's are the only ones.
void use_one_blas_thread() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

std::size_t tiles(std::size_t n, std::size_t tile) { return (n + tile - 1) / tile; }

int leading(view2d<float const> x) { return static_cast<int>(std::max<std::size_t>(x.stride, 1)); }

/// Calls `f(first row, rows as floats)` for consecutive chunks of the weight's rows.
template <class F>
void for_weight_chunks(gguf_tensor const& weight, weight_scratch& scratch, executor_ref executor, F&& f) {
  for (std::size_t first = 0; first < weight.rows(); first += chunk_rows) {
    std::size_t const count = std::min(chunk_rows, weight.rows() - first);
    f(first, scratch.rows(weight, first, count, executor));
  }
}

}  // namespace

view2d<float const> weight_scratch::rows(gguf_tensor const& weight, std::size_t first, std::size_t count,
                                         executor_ref executor) {
  std::size_t const cols = weight.cols(), row_bytes = weight.data.size() / weight.rows();
  values_.resize(std::max(values_.size(), count * cols));
  executor.parallel_for(tiles(count, dequantize_rows), [&](std::size_t tile, int) {
    std::size_t const begin = tile * dequantize_rows, rows = std::min(dequantize_rows, count - begin);
    dequantize(weight.type, weight.data.subspan((first + begin) * row_bytes, rows * row_bytes),
               std::span(values_).subspan(begin * cols, rows * cols));
  });
  return {values_.data(), count, cols};
}

void matrix_product(view2d<float const> a, view2d<float const> b, bool transpose_b, float alpha, float beta,
                    view2d<float> c) {
  use_one_blas_thread();
  cblas_sgemm(CblasRowMajor, CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, static_cast<int>(c.rows),
              static_cast<int>(c.cols), static_cast<int>(a.cols), alpha, a.data, leading(a), b.data, leading(b), beta,
              c.data, leading(c));
}

void transposed_matrix_product(view2d<float const> a, view2d<float const> b, float alpha, float beta, view2d<float> c) {
  use_one_blas_thread();
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, static_cast<int>(c.rows), static_cast<int>(c.cols),
              static_cast<int>(a.rows), alpha, a.data, leading(a), b.data, leading(b), beta, c.data, leading(c));
}

void multiply(view2d<float const> x, gguf_tensor const& weight, view2d<float> out, accumulate mode,
              weight_scratch& scratch, executor_ref executor) {
  KVQ_ASSERT(x.cols == weight.cols() && out.cols == weight.rows() && out.rows == x.rows);
  for_weight_chunks(weight, scratch, executor, [&](std::size_t first, view2d<float const> rows) {
    std::size_t const down = tiles(x.rows, tile_tokens), across = tiles(rows.rows, tile_outputs);
    executor.parallel_for(down * across, [&](std::size_t tile, int) {
      std::size_t const token = tile / across * tile_tokens, output = tile % across * tile_outputs;
      std::size_t const tokens = std::min(tile_tokens, x.rows - token),
                        outputs = std::min(tile_outputs, rows.rows - output);
      matrix_product(x.middle_rows(token, tokens), rows.middle_rows(output, outputs), true, 1,
                     mode == accumulate::yes ? 1.0f : 0.0f,
                     out.middle_rows(token, tokens).middle_cols(first + output, outputs));
    });
  });
}

void multiply_back(view2d<float const> dy, gguf_tensor const& weight, view2d<float> dx, accumulate mode,
                   weight_scratch& scratch, executor_ref executor) {
  KVQ_ASSERT(dy.cols == weight.rows() && dx.cols == weight.cols() && dx.rows == dy.rows);
  for_weight_chunks(weight, scratch, executor, [&](std::size_t first, view2d<float const> rows) {
    executor.parallel_for(tiles(dy.rows, tile_tokens), [&](std::size_t tile, int) {
      std::size_t const token = tile * tile_tokens, tokens = std::min(tile_tokens, dy.rows - token);
      bool const adds = mode == accumulate::yes || first > 0;
      matrix_product(dy.middle_rows(token, tokens).middle_cols(first, rows.rows), rows, false, 1, adds ? 1.0f : 0.0f,
                     dx.middle_rows(token, tokens));
    });
  });
}

}  // namespace kvquant::runtime
