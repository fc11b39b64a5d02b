#pragma once
/// \file
/// Reproducible matrices for tests.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kvquant/core/view.hpp"

namespace kvquant::test {

/// An owning row-major matrix.
struct float_matrix {
  std::size_t rows, cols;
  std::vector<float> values;

  float_matrix(std::size_t r, std::size_t c, float fill = 0) : rows(r), cols(c), values(r * c, fill) {}

  float& operator()(std::size_t r, std::size_t c) { return values[r * cols + c]; }
  operator view2d<float const>() const { return {values.data(), rows, cols}; }
  view2d<float> view() { return {values.data(), rows, cols}; }
  view2d<float const> view() const { return {values.data(), rows, cols}; }
};

/// Normally distributed around 0.
inline float_matrix random_normal(std::size_t rows, std::size_t cols, unsigned seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  float_matrix out(rows, cols);
  for (float& value : out.values) value = normal(random);
  return out;
}

/// Keys look like this: every channel has a centre and a spread of its own, and one value in a hundred lies far out.
inline float_matrix random_keys(std::size_t tokens, std::size_t channels, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  float_matrix out(tokens, channels);
  for (std::size_t c = 0; c < channels; ++c) {
    float const centre = 4 * normal(random), spread = 0.1f + std::abs(normal(random));
    for (std::size_t t = 0; t < tokens; ++t) {
      float const far = random() % 100 == 0 ? 8.0f : 1.0f;
      out(t, c) = centre + far * spread * normal(random);
    }
  }
  return out;
}

/// Squared gradients look like this: positive, over many orders of magnitude.
inline float_matrix random_weights(std::size_t tokens, std::size_t channels, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  float_matrix out(tokens, channels);
  for (float& value : out.values) value = 1e-6f * std::exp(2 * normal(random));
  return out;
}

}  // namespace kvquant::test
