/// \file
/// One's own keys and values in 3 bits: quantized, attended over, held against the reference, timed beside binary16.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <vector>

// [doc:include]
#include "backends/cpu/backend.hpp"  // attention on CPUs: needs Highway
#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "kvquant/kvquant.hpp"              // the library: needs the standard library alone
#include "kvquant/reference/attention.hpp"  // what is right: needs Eigen
#include "kvquant/reference/pages.hpp"
// [/doc]

namespace {

// [doc:tensors]
constexpr std::size_t tokens = 4096;
kvquant::model_shape const shape{.layers = 1, .q_heads = 16, .kv_heads = 4, .head_dim = 64};

struct tensors {
  std::vector<float> k, v, q;  // [tokens, kv_channels] before RoPE, the same, and one query [q_heads · head_dim]
};
kvquant::view2d<float const> rows_of(std::vector<float> const& x, std::size_t rows) {
  return {x.data(), rows, x.size() / rows};
}
// [/doc]

/// In place of a model's: every channel has a centre and a spread of its own.
tensors make_tensors() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  auto const channels = static_cast<std::size_t>(shape.kv_channels());
  tensors it{std::vector<float>(tokens * channels), std::vector<float>(tokens * channels),
             std::vector<float>(static_cast<std::size_t>(shape.q_heads * shape.head_dim))};
  for (std::size_t i = 0; i < it.k.size(); ++i) {
    it.k[i] = 2 * std::sin(static_cast<float>(i % channels)) + normal(random);
    it.v[i] = normal(random);
  }
  for (float& x : it.q) x = normal(random);
  return it;
}

using backend = kvquant::cpu::backend;

// [doc:time]
/// Of one call of attention over all tokens, the fastest of many.
template <class S>
double microseconds(kvquant::artifact<S> const& artifact, tensors const& mine) {
  kvquant::kv_cache<S, backend::page_layout<S>> cache(artifact, {.max_tokens = tokens});
  backend::attention<S> const attend(artifact);
  kvquant::sequence text = cache.open();
  cache.append(text, 0, rows_of(mine.k, tokens), rows_of(mine.v, tokens));
  std::vector<float> out(mine.q.size());
  std::array<kvquant::attend_args, 1> const batch = {
      {{cache.view(text, 0), rows_of(mine.q, 1), {out.data(), 1, out.size()}}}};
  kvquant::inline_executor here;
  double fastest = 1e9;
  for (int round = 0; round < 200; ++round) {
    auto const start = std::chrono::steady_clock::now();
    attend(0, batch, here);
    std::chrono::duration<double, std::micro> const took = std::chrono::steady_clock::now() - start;
    fastest = std::min(fastest, took.count());
  }
  return fastest;
}
// [/doc]

double relative_error(std::vector<float> const& got, kvquant::reference::matrix const& expected) {
  double error = 0, norm = 0;
  for (Eigen::Index i = 0; i < expected.size(); ++i) {
    error += std::pow(double{got[static_cast<std::size_t>(i)]} - expected.data()[i], 2);
    norm += std::pow(expected.data()[i], 2);
  }
  return std::sqrt(error / norm);
}

}  // namespace

int main() {
  tensors const mine = make_tensors();
  auto const k = rows_of(mine.k, tokens), v = rows_of(mine.v, tokens), q = rows_of(mine.q, 1);

  // [doc:quantize]
  using spec = kvquant::spec<kvquant::nuq<3>, kvquant::nuq<3>>;  // 3 bits, of keys and of values
  kvquant::calibrator statistics({.layers = 1, .kv_channels = shape.kv_channels(), .max_tokens = tokens});
  statistics.observe_range(0, k);
  statistics.freeze_ranges();
  statistics.observe(0, k, v);
  auto const artifact = kvquant::fit<spec>(statistics, {.shape = shape, .weights = kvquant::fit_weights::activation});

  kvquant::kv_cache<spec, backend::page_layout<spec>> cache(artifact, {.max_tokens = tokens});
  kvquant::sequence text = cache.open();
  cache.append(text, 0, k, v);
  double const bits = cache.bytes(text).bits_per_element(cache.elements(text));

  backend::attention<spec> const attend(artifact);
  std::vector<float> out(mine.q.size());
  std::array<kvquant::attend_args, 1> const batch = {{{cache.view(text, 0), q, {out.data(), 1, out.size()}}}};
  kvquant::inline_executor here;
  attend(0, batch, here);
  // [/doc]

  // [doc:verify]
  namespace reference = kvquant::reference;
  std::vector<std::int64_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), 0);
  auto const expected = [&](reference::matrix const& keys, reference::matrix const& values) {
    return reference::attention(reference::to_matrix(q), keys, values, shape,
                                1 / std::sqrt(static_cast<double>(shape.head_dim)),
                                std::array{std::int64_t{tokens - 1}}, positions)
        .out;
  };
  auto const stored = reference::read_layer(cache, artifact, text, 0);  // as the pages read
  double const of_kernel = relative_error(out, expected(stored.k, stored.v));
  double const of_bits = relative_error(out, expected(reference::to_matrix(k), reference::to_matrix(v)));
  // [/doc]

  double const in_bits = microseconds(artifact, mine);
  double const in_f16 = microseconds(kvquant::make_passthrough_artifact(shape), mine);
  std::printf("%.2f bits an element; off by %.3f from the reference over the same pages, by %.3f from exact ones\n",
              bits, of_kernel, of_bits);
  std::printf("attention over %zu tokens: %.0f us, in binary16 %.0f us\n", tokens, in_bits, in_f16);
  return bits < 4 && of_kernel < 0.03 && of_bits < 0.3 ? 0 : 1;
}
