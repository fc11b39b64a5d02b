#include "runtime/linear.hpp"
#include "kvquant/reference/matrix.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "test/support/gguf_writer.hpp"
#include "test/support/random_matrix.hpp"

namespace kvquant::runtime {
namespace {

using reference::to_matrix;
using test::float_matrix;
using test::random_normal;
using real_matrix = Eigen::MatrixXd;
using enum tensor_type;

constexpr float unset = std::numeric_limits<float>::quiet_NaN();

/// A weight in its blocks, and as numbers.
struct random_weight {
  std::vector<std::byte> blocks;
  gguf_tensor tensor;
  real_matrix values;  // [outputs, inputs]

  random_weight(tensor_type type, std::size_t outputs, std::size_t inputs, unsigned seed)
      : blocks(make_blocks(type, outputs * inputs, seed)),
        tensor{"w", type, {inputs, outputs}, blocks},
        values(static_cast<Eigen::Index>(outputs), static_cast<Eigen::Index>(inputs)) {
    std::vector<float> flat(outputs * inputs);
    dequantize(type, blocks, flat);
    for (Eigen::Index r = 0; r < values.rows(); ++r)
      for (Eigen::Index c = 0; c < values.cols(); ++c)
        values(r, c) = flat[static_cast<std::size_t>(r * values.cols() + c)];
  }
  random_weight(random_weight const&) = delete;
  random_weight& operator=(random_weight const&) = delete;

 private:
  static std::vector<std::byte> make_blocks(tensor_type type, std::size_t elements, unsigned seed) {
    std::mt19937 random(seed);
    return test::random_blocks(type, elements, random);
  }
};

/// Every element within single precision of a sum of `terms` products of numbers of about 1.
void check_close(view2d<float const> found, real_matrix const& expected, std::size_t terms) {
  REQUIRE(to_matrix(found).allFinite());
  CHECK((to_matrix(found) - expected).cwiseAbs().maxCoeff() < 1e-5 * (1 + std::sqrt(static_cast<double>(terms))));
}

TEST_CASE("products with weights of every type agree with those of their decoded values") {
  auto const type = GENERATE(f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k);
  inline_executor executor;
  weight_scratch scratch;
  random_weight const w(type, 67, 512, 1);
  INFO(traits(type).name);

  auto const x = random_normal(5, 512, 2);
  float_matrix out(5, 67, unset);
  multiply(x, w.tensor, out.view(), accumulate::no, scratch, executor);
  check_close(out, to_matrix(x) * w.values.transpose(), 512);

  auto const dy = random_normal(5, 67, 3);
  float_matrix dx(5, 512, unset);
  multiply_back(dy, w.tensor, dx.view(), accumulate::no, scratch, executor);
  check_close(dx, to_matrix(dy) * w.values, 67);
}

struct product_shape {
  std::size_t tokens, outputs;
};

TEST_CASE("products whose sizes are not those of the tiles") {
  // Tiles are 128 tokens x 2048 outputs, of chunks of 8192 weight rows; rows are decoded 64 at a time.
  auto const shape =
      GENERATE(product_shape{1, 1}, product_shape{3, 63}, product_shape{127, 65}, product_shape{128, 2048},
               product_shape{129, 2047}, product_shape{300, 2049}, product_shape{2, 8191}, product_shape{1, 8192},
               product_shape{131, 8193}, product_shape{7, 16385});
  std::size_t const inputs = 32;
  inline_executor executor;
  weight_scratch scratch;
  random_weight const w(q8_0, shape.outputs, inputs, 4);
  auto const x = random_normal(shape.tokens, inputs, 5), dy = random_normal(shape.tokens, shape.outputs, 6);
  real_matrix const product = to_matrix(x) * w.values.transpose(), back = to_matrix(dy) * w.values;
  INFO(shape.tokens << " tokens, " << shape.outputs << " outputs");

  SECTION("overwrite") {
    float_matrix out(shape.tokens, shape.outputs, unset), dx(shape.tokens, inputs, unset);
    multiply(x, w.tensor, out.view(), accumulate::no, scratch, executor);
    multiply_back(dy, w.tensor, dx.view(), accumulate::no, scratch, executor);
    check_close(out, product, inputs);
    check_close(dx, back, shape.outputs);
  }
  SECTION("accumulate") {
    auto out = random_normal(shape.tokens, shape.outputs, 7), dx = random_normal(shape.tokens, inputs, 8);
    real_matrix const out_before = to_matrix(out), dx_before = to_matrix(dx);
    multiply(x, w.tensor, out.view(), accumulate::yes, scratch, executor);
    multiply_back(dy, w.tensor, dx.view(), accumulate::yes, scratch, executor);
    check_close(out, out_before + product, inputs);
    check_close(dx, dx_before + back, shape.outputs);
  }
}

/// The middle of a wider and taller matrix.
view2d<float> inside(float_matrix& m) { return m.view().middle_rows(1, m.rows - 3).middle_cols(2, m.cols - 7); }

/// What lies around `inside` still holds `fill`.
bool is_frame_kept(float_matrix const& m, float fill) {
  for (std::size_t r = 0; r < m.rows; ++r)
    for (std::size_t c = 0; c < m.cols; ++c) {
      bool const is_inside = r >= 1 && r < m.rows - 2 && c >= 2 && c < m.cols - 5;
      if (!is_inside && m.view()(r, c) != fill) return false;
    }
  return true;
}

TEST_CASE("products of parts of matrices touch no more than their part") {
  std::size_t const tokens = 130, inputs = 64, outputs = 70;
  inline_executor executor;
  weight_scratch scratch;
  random_weight const w(f16, outputs, inputs, 9);
  auto x = random_normal(tokens + 3, inputs + 7, 10), dy = random_normal(tokens + 3, outputs + 7, 11);
  float_matrix out(tokens + 3, outputs + 7, 5), dx(tokens + 3, inputs + 7, 5);
  multiply(inside(x), w.tensor, inside(out), accumulate::no, scratch, executor);
  multiply_back(inside(dy), w.tensor, inside(dx), accumulate::no, scratch, executor);
  check_close(inside(out), to_matrix(inside(x)) * w.values.transpose(), inputs);
  check_close(inside(dx), to_matrix(inside(dy)) * w.values, outputs);
  CHECK(is_frame_kept(out, 5));
  CHECK(is_frame_kept(dx, 5));
}

TEST_CASE("products have the same bits for any number of threads") {
  std::size_t const tokens = 200, inputs = 96, outputs = 8300;
  random_weight const w(q4_1, outputs, inputs, 12);
  auto const x = random_normal(tokens, inputs, 13), dy = random_normal(tokens, outputs, 14);
  std::vector<std::vector<float>> results, back;
  for (int const threads : {1, 2, 3}) {
    cpu::thread_pool pool(threads);
    weight_scratch scratch;
    float_matrix out(tokens, outputs), dx(tokens, inputs);
    multiply(x, w.tensor, out.view(), accumulate::no, scratch, pool);
    multiply_back(dy, w.tensor, dx.view(), accumulate::no, scratch, pool);
    results.push_back(out.values);
    back.push_back(dx.values);
  }
  CHECK(results == std::vector(3, results[0]));
  CHECK(back == std::vector(3, back[0]));
}

TEST_CASE("scratch holds the rows that were asked for") {
  inline_executor executor;
  weight_scratch scratch;
  random_weight const w(q5_1, 200, 64, 15);
  for (auto const& [first, count] : {std::array<std::size_t, 2>{0, 200}, {3, 129}, {199, 1}, {64, 64}}) {
    auto const rows = scratch.rows(w.tensor, first, count, executor);
    REQUIRE(rows.rows == count);
    REQUIRE(rows.cols == 64);
    CHECK(to_matrix(rows) == w.values.middleRows(static_cast<Eigen::Index>(first), static_cast<Eigen::Index>(count)));
  }
}

TEST_CASE("plain products: factors, transposes and parts of matrices") {
  struct sizes {
    std::size_t m, k, n;
  };
  struct factors {
    float a, b;
  };
  auto const size = GENERATE(sizes{1, 1, 1}, sizes{5, 16, 33}, sizes{64, 3, 2}, sizes{129, 65, 70});
  auto const factor = GENERATE(factors{1, 0}, factors{0.25f, 1}, factors{-2, 0.5f}, factors{0, 1});
  std::size_t const m = size.m, k = size.k, n = size.n;
  float const alpha = factor.a, beta = factor.b;
  auto a = random_normal(m + 3, k + 7, 16), a_turned = random_normal(k + 3, m + 7, 17),
       b = random_normal(k + 3, n + 7, 18), b_turned = random_normal(n + 3, k + 7, 19);
  auto const start = random_normal(m, n, 20);
  auto const check = [&](auto&& product, real_matrix const& expected) {
    float_matrix c(m + 3, n + 7, 5);
    for (std::size_t row = 0; row < m; ++row) std::ranges::copy(start.view().row(row), inside(c).row(row).begin());
    product(inside(c));
    check_close(inside(c), static_cast<double>(alpha) * expected + static_cast<double>(beta) * to_matrix(start), 2 * k);
    CHECK(is_frame_kept(c, 5));
  };
  check([&](view2d<float> c) { matrix_product(inside(a), inside(b), false, alpha, beta, c); },
        to_matrix(inside(a)) * to_matrix(inside(b)));
  check([&](view2d<float> c) { matrix_product(inside(a), inside(b_turned), true, alpha, beta, c); },
        to_matrix(inside(a)) * to_matrix(inside(b_turned)).transpose());
  check([&](view2d<float> c) { transposed_matrix_product(inside(a_turned), inside(b), alpha, beta, c); },
        to_matrix(inside(a_turned)).transpose() * to_matrix(inside(b)));
}

}  // namespace
}  // namespace kvquant::runtime
