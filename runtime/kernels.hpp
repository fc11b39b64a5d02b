#pragma once
/// \file
/// Row operations of a transformer, vectorised for the machine at hand. Sums run in a fixed order.

#include <span>

namespace kvquant::runtime::kernels {

/// out = x · weight / sqrt(mean(x²) + epsilon). All [n].
void rms_norm(std::span<float const> x, std::span<float const> weight, float epsilon, std::span<float> out);
/// Adds the gradient with respect to x, given the one with respect to the output.
void rms_norm_backward(std::span<float const> x, std::span<float const> weight, float epsilon,
                       std::span<float const> d_out, std::span<float> dx);

/// Scores become probabilities. Values that are −infinity become 0; one at least must be finite.
void softmax(std::span<float> scores);
/// d_scores = p · (dp − Σ p dp), over dp.
void softmax_backward(std::span<float const> p, std::span<float> dp);

/// out = silu(gate) · up.
void silu_multiply(std::span<float const> gate, std::span<float const> up, std::span<float> out);
/// Gradients with respect to gate and up, which they replace.
void silu_multiply_backward(std::span<float> gate, std::span<float> up, std::span<float const> d_out);
/// The same with GELU in its tanh form.
void gelu_multiply(std::span<float const> gate, std::span<float const> up, std::span<float> out);
void gelu_multiply_backward(std::span<float> gate, std::span<float> up, std::span<float const> d_out);

/// log Σ exp(x), accurate to about 1e-6.
double log_sum_exp(std::span<float const> x);
/// Σ p (log p − log q) for p = exp(x − lse_x), q = exp(y − lse_y).
double kl_divergence(std::span<float const> x, double lse_x, std::span<float const> y, double lse_y);
/// x = scale · exp(x − lse): probabilities times `scale`.
void scaled_probabilities(std::span<float> x, double lse, float scale);

}  // namespace kvquant::runtime::kernels
