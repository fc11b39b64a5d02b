#pragma once
/// \file
/// The runtime's model beside the reference, and hooks that are plain functions.

#include <Eigen/Core>
#include <functional>
#include <optional>
#include <span>

#include "kvquant/core/executor.hpp"
#include "kvquant/reference/matrix.hpp"
#include "runtime/model.hpp"
#include "test/runtime/reference_model.hpp"
#include "test/support/tiny_model.hpp"

namespace kvquant::test {

inline real_matrix to_real(view2d<float const> x) { return reference::to_matrix(x); }
inline real_matrix to_real(runtime::matrix const& x) { return x.cast<double>(); }

/// |found − expected| / |expected|, Frobenius norms.
inline double relative_error(real_matrix const& found, real_matrix const& expected) {
  return (found - expected).norm() / expected.norm();
}

/// Both models of one tiny file.
struct model_pair {
  tiny_model shape;
  memory_gguf gguf;
  inline_executor executor = {};
  runtime::model model;
  reference_model reference;

  explicit model_pair(tiny_model const& tiny)
      : shape(tiny), gguf(tiny.writer()), model(gguf.file(), executor), reference(shape, gguf.file()) {}
  model_pair(model_pair const&) = delete;
  model_pair& operator=(model_pair const&) = delete;
};

/// The hooks of `reference_hooks`, in single precision.
struct function_hook final : runtime::kv_hook {
  using change = std::function<void(int layer, view2d<float>)>;
  change on_queries, on_keys, on_rotated_keys, on_values;
  std::optional<runtime::exact_window> exact = std::nullopt;

  void queries_pre_rope(int layer, view2d<float> q) override { call(on_queries, layer, q); }
  void keys_pre_rope(int layer, view2d<float> k) override { call(on_keys, layer, k); }
  void keys_post_rope(int layer, view2d<float> k) override { call(on_rotated_keys, layer, k); }
  void values(int layer, view2d<float> v) override { call(on_values, layer, v); }
  std::optional<runtime::exact_window> window() const override { return exact; }

 private:
  static void call(change const& f, int layer, view2d<float> x) {
    if (f) f(layer, x);
  }
};

}  // namespace kvquant::test
