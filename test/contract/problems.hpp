#pragma once
/// \file
/// Models, tokens and queries to ask with.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "test/contract/subject.hpp"

namespace kvquant::contract {

enum class data { outliers, all_equal, huge_channel, denormal };

inline float_matrix make_tokens(data kind, std::size_t tokens, std::size_t channels, std::uint64_t seed) {
  if (kind == data::all_equal) return {tokens, channels, 1.5f};
  float_matrix out = test::random_keys(tokens, channels, seed);
  if (kind == data::huge_channel)
    for (std::size_t t = 0; t < tokens; ++t) out(t, channels / 2) *= 500;
  if (kind == data::denormal)  // of binary16: its normal numbers start at 6.1e-5
    for (float& x : out.values) x *= 1e-6f;
  return out;
}

inline float_matrix make_queries(problem const& of, std::size_t rows, std::uint64_t seed = 1000) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  float_matrix q(rows, of.query_channels());
  for (float& x : q.values) x = normal(random);
  return q;
}

inline model_shape make_shape(int kv_heads, int group, int head_dim, rope_config const& rotation = {}, int layers = 1) {
  return {.layers = layers, .q_heads = kv_heads * group, .kv_heads = kv_heads, .head_dim = head_dim, .rope = rotation};
}

/// Every layer has tokens of its own.
inline problem make_problem(test::hand_made_options const& model, std::size_t tokens, int recent_pages = 0,
                            data kind = data::outliers, std::uint64_t seed = 1) {
  problem it{model, recent_pages, {}, {}};
  auto const channels = static_cast<std::size_t>(model.shape.kv_channels());
  for (int layer = 0; layer < model.shape.layers; ++layer, seed += 2) {
    it.k.push_back(make_tokens(kind, tokens, channels, seed));
    it.v.push_back(make_tokens(kind, tokens, channels, seed + 1));
  }
  return it;
}

inline std::vector<rope_config> rotations(int head_dim) {
  return {{},
          {.pairing = rope_pairing::interleaved},
          {.rotary_dim = head_dim / 2},
          {.pairing = rope_pairing::interleaved, .theta = 1e6, .rotary_dim = head_dim / 4},
          {.scaling = rope_scaling::yarn, .factor = 8, .original_context = 64},
          {.enabled = false}};
}

}  // namespace kvquant::contract
