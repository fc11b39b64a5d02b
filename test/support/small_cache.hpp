#pragma once
/// \file
/// Small caches with tokens to put in, and all that a sequence holds in a form that can be compared.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/cache/row_major_layout.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/executor.hpp"
#include "kvquant/core/half.hpp"
#include "test/support/hand_made_artifact.hpp"
#include "test/support/random_matrix.hpp"

namespace kvquant::test {

template <Spec S>
using row_major_cache = kv_cache<S, row_major_layout<S>>;

/// Keys and values of every layer, [tokens, kv_channels] each.
struct token_stream {
  std::vector<float_matrix> k, v;

  explicit token_stream(model_shape const& shape, std::size_t tokens = 512, std::uint64_t seed = 1) {
    for (int layer = 0; layer < shape.layers; ++layer, seed += 2) {
      k.push_back(random_keys(tokens, static_cast<std::size_t>(shape.kv_channels()), seed));
      v.push_back(random_keys(tokens, static_cast<std::size_t>(shape.kv_channels()), seed + 1));
    }
  }
  view2d<float const> keys(int layer, std::size_t first, std::size_t count) const {
    return k[static_cast<std::size_t>(layer)].view().middle_rows(first, count);
  }
  view2d<float const> values(int layer, std::size_t first, std::size_t count) const {
    return v[static_cast<std::size_t>(layer)].view().middle_rows(first, count);
  }
};

/// What the artifact of a test says, beside its numbers.
struct artifact_choice {
  model_shape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .rope = {}};
  double fraction_k = 0.02, fraction_v = 0.05;
  int sinks = 1;
};

/// Random rising levels, decoded a little off.
inline codebook random_codebook(int bits, std::mt19937_64& random) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  codebook book;
  book.levels.resize(std::size_t{1} << bits);
  for (float& level : book.levels) level = uniform(random);
  std::sort(book.levels.begin(), book.levels.end());
  for (float const level : book.levels) book.decode_levels.push_back(1.05f * level + 0.01f);
  return book;
}

/// An artifact whose key ranges fit the tokens.
template <Spec S>
artifact<S> artifact_for(token_stream const& tokens, artifact_choice const& choice = {}) {
  std::mt19937_64 random(3);
  artifact<S> it;
  it.info = {.spec = S::name(),
             .shape = choice.shape,
             .outlier_fraction_k = choice.fraction_k,
             .outlier_fraction_v = choice.fraction_v,
             .sinks = choice.sinks,
             .origin = {.model_name = "a small model", .model_hash = "0123"},
             .hash = "4567"};
  std::size_t const channels = static_cast<std::size_t>(choice.shape.kv_channels());
  for (int layer = 0; layer < choice.shape.layers; ++layer)
    it.layers.push_back({.key_ranges = ranges_around_mean(tokens.k[static_cast<std::size_t>(layer)], 2),
                         .key = random_codebook(S::key_format::bits, random),
                         .value = random_codebook(S::value_format::bits, random),
                         .key_sensitivity = random_weights(1, channels, random()).values,
                         .value_sensitivity = random_weights(1, channels, random()).values});
  return it;
}

/// The tokens of most tests, others, and their artifact.
inline token_stream const& small_stream() {
  static token_stream const it(artifact_choice{}.shape);
  return it;
}
inline token_stream const& other_stream() {
  static token_stream const it(artifact_choice{}.shape, 512, 99);
  return it;
}
template <Spec S>
artifact<S> const& small_artifact() {
  static artifact<S> const it = artifact_for<S>(small_stream());
  return it;
}

inline std::vector<half> to_halves(view2d<float const> x) {
  std::vector<half> halves;
  for (std::size_t row = 0; row < x.rows; ++row)
    for (float const value : x.row(row)) halves.push_back(to_half(value));
  return halves;
}

/// Appends tokens [first, first + count) of the stream to every layer.
template <class Cache>
void append_tokens(Cache& cache, sequence& to, token_stream const& from, std::size_t first, std::size_t count,
                   executor_ref executor) {
  for (int layer = 0; layer < static_cast<int>(cache.layers()); ++layer)
    cache.append(to, layer, from.keys(layer, first, count), from.values(layer, first, count), executor);
}
template <class Cache>
void append_tokens(Cache& cache, sequence& to, token_stream const& from, std::size_t first, std::size_t count) {
  inline_executor here;
  append_tokens(cache, to, from, first, count, here);
}

/// A new sequence of the stream's first `count` tokens.
template <class Cache>
sequence sequence_of(Cache& cache, token_stream const& from, std::size_t count) {
  sequence it = cache.open(count);
  append_tokens(cache, it, from, 0, count);
  return it;
}

/// Pages for `pages` of every layer, and 5 sinks.
struct small_cache : row_major_cache<spec<nuq<3>, nuq<3>>> {
  explicit small_cache(std::size_t pages, int recent = 0)
      : kv_cache(small_artifact<spec_type>(), {.max_tokens = pages * page_tokens, .sinks = 5, .recent_pages = recent}) {
  }
  std::size_t free_pages() const { return free_blocks() / layers(); }
};

/// One layer of a sequence, bit for bit; where its pages lie is no part of it.
struct layer_contents {
  std::size_t sinks, sealed, tail;
  std::vector<std::uint16_t> exact;  ///< bits: sinks' keys and values, the tail's keys and values
  std::vector<std::byte> pages;      ///< [pages, kv_heads, page_bytes]
  friend bool operator==(layer_contents const&, layer_contents const&) = default;
};

template <class Cache>
std::vector<layer_contents> contents_of(Cache const& cache, sequence const& of) {
  std::vector<layer_contents> layers;
  for (int layer = 0; layer < static_cast<int>(cache.layers()); ++layer) {
    layer_view const view = cache.view(of, layer);
    layer_contents it{view.sink_k.rows, view.sealed, view.tail_k.rows, {}, {}};
    for (auto const& rows : {view.sink_k, view.sink_v, view.tail_k, view.tail_v})
      for (std::size_t row = 0; row < rows.rows; ++row)
        for (half const x : rows.row(row)) it.exact.push_back(x.bits);
    for (std::size_t index = view.gone; index < view.gone + view.pages.size(); ++index)
      for (std::size_t head = 0; head < cache.kv_heads(); ++head) {
        auto const raw = view.page(index, head, cache.kv_heads());
        it.pages.insert(it.pages.end(), raw.begin(), raw.end());
      }
    layers.push_back(std::move(it));
  }
  return layers;
}

/// The tokens alone, in canonical pages: the same for every layout.
template <class Cache>
std::vector<canonical_page<typename Cache::spec_type>> pages_of(Cache const& cache, sequence const& of) {
  std::vector<canonical_page<typename Cache::spec_type>> pages;
  for (int layer = 0; layer < static_cast<int>(cache.layers()); ++layer)
    for (std::size_t index = 0; index < cache.view(of, layer).pages.size(); ++index)
      for (std::size_t head = 0; head < cache.kv_heads(); ++head)
        cache.read_page(of, layer, cache.view(of, layer).gone + index, head, pages.emplace_back());
  return pages;
}

}  // namespace kvquant::test
