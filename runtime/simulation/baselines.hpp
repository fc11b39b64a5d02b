#pragma once
/// \file
/// Quantized caches that others use, to compare with.

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/simulation/simulator.hpp"

namespace kvquant::runtime {

/// One of `baseline_names()`. Throws `unsupported` for any other name, and where the model's shape does not suit it.
std::unique_ptr<simulator> simulate_baseline(std::string_view name, model_config const& config, executor_ref executor);

/// f16; q8_0, q4_0: ggml's blocks of 32 along head_dim, keys after RoPE; kivi2, kivi4: arXiv 2402.02750, groups of 32,
/// the last 128 tokens exact; int4, int3: one range per token over all KV heads, keys before RoPE.
std::span<std::string_view const> baseline_names();

namespace rounding {
/// Each replaces `x` by what it reads as after storage.
void f16(std::span<float> x);
void q8_0(std::span<float> x);  ///< one block: x = q · d, d = max|x| / 127
void q4_0(std::span<float> x);  ///< one block: x = (q − 8) · d, d = −(value of largest magnitude) / 8
/// Evenly spaced from the minimum; minimum and step in binary16. Element i lies at x[i · stride].
void asymmetric_int(float* x, std::size_t count, std::size_t stride, int bits);
}  // namespace rounding

}  // namespace kvquant::runtime
