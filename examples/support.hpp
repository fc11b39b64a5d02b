#pragma once
/// \file
/// What the cache's examples share: a small model with the tokens that its runtime would compute, and an artifact.

#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include "backends/cpu/generic/backend.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/kvquant.hpp"

namespace example {

using spec = kvquant::spec<kvquant::nuq<3>, kvquant::nuq<3>>;  // of keys, of values
using backend = kvquant::cpu::generic::backend;
using cache_type = kvquant::kv_cache<spec, backend::page_layout<spec>>;

inline kvquant::model_shape const shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64};

/// [layers, tokens, heads · head_dim]
class tensor {
 public:
  tensor(std::size_t tokens, int heads)
      : tokens_(tokens),
        cols_(static_cast<std::size_t>(heads * shape.head_dim)),
        values_(static_cast<std::size_t>(shape.layers) * tokens_ * cols_) {}

  /// Tokens [first, first + count) of a layer.
  kvquant::view2d<float> operator()(int layer, std::size_t first, std::size_t count) {
    return {values_.data() + offset(layer, first), count, cols_};
  }
  kvquant::view2d<float const> operator()(int layer, std::size_t first, std::size_t count) const {
    return {values_.data() + offset(layer, first), count, cols_};
  }
  std::size_t cols() const { return cols_; }
  std::vector<float>& values() { return values_; }
  std::vector<float> const& values() const { return values_; }

 private:
  std::size_t offset(int layer, std::size_t token) const {
    return (static_cast<std::size_t>(layer) * tokens_ + token) * cols_;
  }
  std::size_t tokens_, cols_;
  std::vector<float> values_;
};

/// What a runtime's forward pass would give: here random numbers, keys around a centre of their channel.
struct token_stream {
  std::size_t tokens;
  tensor k, v, q;  // keys and queries before RoPE

  token_stream(std::size_t count, unsigned seed)
      : tokens(count), k(count, shape.kv_heads), v(count, shape.kv_heads), q(count, shape.q_heads) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (tensor* const it : {&k, &v, &q})
      for (float& x : it->values()) x = normal(random);
    for (std::size_t i = 0; i < k.values().size(); ++i) k.values()[i] += 3 * std::sin(static_cast<float>(i % k.cols()));
  }
};

/// Calibrated without gradients (`02_calibrate.cpp` has them). A runtime would have it from `load_artifact`.
inline kvquant::artifact<spec> fitted_artifact() {
  token_stream const sample(1024, 99);
  kvquant::calibrator statistics(
      {.layers = shape.layers, .kv_channels = shape.kv_channels(), .max_tokens = sample.tokens});
  for (int layer = 0; layer < shape.layers; ++layer) statistics.observe_range(layer, sample.k(layer, 0, sample.tokens));
  statistics.freeze_ranges();
  for (int layer = 0; layer < shape.layers; ++layer)
    statistics.observe(layer, sample.k(layer, 0, sample.tokens), sample.v(layer, 0, sample.tokens));
  return kvquant::fit<spec>(statistics, {.shape = shape, .weights = kvquant::fit_weights::activation});
}

/// Tokens [first, first + count) of the stream, to every layer.
inline void append(cache_type& cache, kvquant::sequence& to, token_stream const& from, std::size_t first,
                   std::size_t count) {
  for (int layer = 0; layer < shape.layers; ++layer)
    cache.append(to, layer, from.k(layer, first, count), from.v(layer, first, count));
}

/// All that one layer of a sequence holds.
struct layer_contents {
  std::vector<std::vector<std::byte>> pages;  ///< [pages]: of all KV heads
  std::vector<kvquant::half> exact;           ///< sinks and tail
  friend bool operator==(layer_contents const&, layer_contents const&) = default;
};

inline std::vector<layer_contents> contents_of(cache_type const& cache, kvquant::sequence const& of) {
  std::vector<layer_contents> layers(cache.layers());
  for (int layer = 0; layer < shape.layers; ++layer) {
    layer_contents& it = layers[static_cast<std::size_t>(layer)];
    kvquant::layer_view const view = cache.view(of, layer);
    for (std::size_t index = 0; index < view.pages.size(); ++index) {
      auto const* const block = view.page(index, 0, cache.kv_heads()).data();  // the other heads' follow it
      it.pages.emplace_back(block, block + cache.kv_heads() * view.page_bytes);
    }
    for (auto const& rows : {view.sink_k, view.sink_v, view.tail_k, view.tail_v})
      it.exact.insert(it.exact.end(), rows.data, rows.data + rows.rows * rows.cols);
  }
  return layers;
}

}  // namespace example
