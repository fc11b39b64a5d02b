#pragma once
/// \file
/// Which rotary position embedding a model uses.

#include <vector>

namespace kvquant {

/// Which two channels of a head make a rotary pair.
enum class rope_pairing {
  half_split,   ///< (i, i + rotary_dim / 2): Hugging Face, GPT-NeoX, qwen2
  interleaved,  ///< (2i, 2i + 1): the original RoPE; `llama` models as GGUF stores them
};

/// How angles are changed for contexts longer than the model was first trained for.
enum class rope_scaling { none, linear, ntk, llama3, yarn };

/// Angles are `position · inverse_frequency[i]`, with `inverse_frequency[i] = theta^(−2i / rotary_dim)` before scaling.
struct rope_config {
  bool enabled = true;                              ///< false: no rotation at all (absolute or no positions)
  rope_pairing pairing = rope_pairing::half_split;  ///< which channels turn together
  double theta = 10000.0;                           ///< base of the frequencies
  int rotary_dim = 0;                               ///< channels of a head that are rotated, even; 0 means all of them
  rope_scaling scaling = rope_scaling::none;        ///< which of the members below count
  double factor = 1.0;                              ///< linear, ntk, llama3, yarn: the context is this much longer
  int original_context = 0;                         ///< llama3, yarn: tokens the model was first trained for
  double low_frequency_factor = 1.0;                ///< llama3
  double high_frequency_factor = 4.0;               ///< llama3
  double beta_fast = 32.0;                          ///< yarn: rotations above which a pair is not interpolated
  double beta_slow = 1.0;                           ///< yarn: rotations below which a pair is interpolated wholly
  double attention_factor = 0.0;                    ///< yarn: multiplies cos and sin; 0 means 0.1 ln(factor) + 1
  std::vector<float> frequency_factors{};  ///< [rotary_dim / 2] divides each inverse frequency (`rope_freqs`), or empty
};

}  // namespace kvquant
