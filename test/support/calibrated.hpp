#pragma once
/// \file
/// A small calibration on random keys, values and gradients.

#include <cstdint>

#include "kvquant/calibrate/calibrator.hpp"
#include "kvquant/calibrate/fit.hpp"
#include "test/support/random_matrix.hpp"

namespace kvquant::test {

inline model_shape small_shape() { return {.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .rope = {}}; }

inline calibration_options small_options() {
  return {.layers = 2,
          .kv_channels = 32,
          .outlier_fraction_k = 0.02,
          .outlier_fraction_v = 0.07,
          .sinks = 1,
          .max_tokens = 4096,
          .bins = 512};
}

/// The same with a histogram for each channel.
inline calibration_options small_channel_options() {
  calibration_options options = small_options();
  options.channel_bins = 256;
  return options;
}

inline void observe_ranges(calibrator& it, std::uint64_t seed, std::size_t tokens = 500) {
  for (int layer = 0; layer < it.options().layers; ++layer) {
    auto const at = seed + static_cast<std::uint64_t>(layer);
    it.observe_range(layer, random_keys(tokens, 32, at));
    if (it.options().channel_bins > 0) it.observe_value_range(layer, random_keys(tokens, 32, at + 100));
  }
}

inline void observe_window(calibrator& it, std::uint64_t seed, std::size_t tokens = 500) {
  for (int layer = 0; layer < it.options().layers; ++layer) {
    auto const at = seed + static_cast<std::uint64_t>(layer);
    it.observe(layer, random_keys(tokens, 32, at), random_keys(tokens, 32, at + 100),
               random_weights(tokens, 32, at + 200), random_weights(tokens, 32, at + 300));
  }
}

inline calibrator small_calibration(calibration_options const& options = small_options()) {
  calibrator it(options);
  observe_ranges(it, 1);
  it.freeze_ranges();
  observe_window(it, 1);
  return it;
}

inline fit_options small_fit() {
  return {.shape = small_shape(),
          .origin = {.model_name = "a small model",
                     .model_hash = "0123",
                     .tokenizer_hash = "4567",
                     .text_hash = "89ab",
                     .samples = 1,
                     .context = 500,
                     .seed = 1}};
}

}  // namespace kvquant::test
