/// \file
/// A toy runtime, before and after: its own cache of floats, and the same layers on a quantized cache. Four calls
/// change; what is measured is how far the model's output moves.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "backends/cpu/generic/backend.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "kvquant/engine.hpp"
#include "kvquant/kvquant.hpp"

namespace {

using view = kvquant::view2d<float const>;

kvquant::model_shape const shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32};
constexpr std::size_t hidden = 128, calibration_tokens = 512, prompt = 300, end = 340;

/// Random weights, and a block of the Llama kind without its feed-forward part.
class toy_model {
 public:
  toy_model() {
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(hidden)));
    auto const kv = static_cast<std::size_t>(shape.kv_channels()),
               q = static_cast<std::size_t>(shape.q_heads * shape.head_dim);
    for (int layer = 0; layer < shape.layers; ++layer) {
      weights& w = layers_.emplace_back();
      for (auto const& [matrix, rows] : {std::pair{&w.k, kv}, {&w.v, kv}, {&w.q, q}, {&w.out, hidden}}) {
        matrix->resize(rows * hidden);
        for (float& x : *matrix) x = normal(random);
      }
    }
  }

  // [doc:forward]
  /// The hidden states of tokens, [tokens, hidden]. `attend(layer, k, v, q, out)`: attention from each of them over
  /// all that came before; k and q are before RoPE.
  template <class Attend>
  std::vector<float> forward(std::vector<float> x, Attend&& attend) const {
    std::size_t const tokens = x.size() / hidden;
    for (int layer = 0; layer < shape.layers; ++layer) {
      weights const& w = layers_[static_cast<std::size_t>(layer)];
      std::vector<float> const k = multiply(w.k, x), v = multiply(w.v, x), q = multiply(w.q, x);
      std::vector<float> out(q.size());
      attend(layer, rows(k, tokens), rows(v, tokens), rows(q, tokens), {out.data(), tokens, out.size() / tokens});
      std::vector<float> const added = multiply(w.out, out);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += added[i];
    }
    return x;
  }
  // [/doc]

  static view rows(std::vector<float> const& x, std::size_t tokens) { return {x.data(), tokens, x.size() / tokens}; }

 private:
  struct weights {
    std::vector<float> k, v, q, out;  // [outputs, hidden]
  };
  static std::vector<float> multiply(std::vector<float> const& weight, std::vector<float> const& x) {
    std::size_t const outputs = weight.size() / hidden, tokens = x.size() / hidden;
    std::vector<float> y(tokens * outputs);
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t o = 0; o < outputs; ++o)
        for (std::size_t i = 0; i < hidden; ++i) y[t * outputs + o] += weight[o * hidden + i] * x[t * hidden + i];
    return y;
  }
  std::vector<weights> layers_;
};

// [doc:before]
/// What the runtime had: keys after RoPE and values of one sequence, in floats.
class plain_cache {
 public:
  void attend(int layer, view k, view v, view q, kvquant::view2d<float> out) {
    std::vector<float>&keys = k_[static_cast<std::size_t>(layer)], &values = v_[static_cast<std::size_t>(layer)];
    for (std::size_t t = 0; t < k.rows; ++t) {
      auto const position = static_cast<std::int64_t>(keys.size() / k.cols);
      store(k.row(t), position, keys);
      values.insert(values.end(), v.row(t).begin(), v.row(t).end());
      std::vector<float> query;
      store(q.row(t), position, query);
      for (std::size_t head = 0; head < static_cast<std::size_t>(shape.q_heads); ++head)
        attend_head(query, keys, values, head, out.row(t));
    }
  }
  void truncate(std::size_t tokens) {
    for (auto* const side : {&k_, &v_})
      for (std::vector<float>& it : *side) it.resize(tokens * static_cast<std::size_t>(shape.kv_channels()));
  }
  // [/doc]

 private:
  void store(std::span<float const> token, std::int64_t position, std::vector<float>& to) const {
    auto const d = static_cast<std::size_t>(shape.head_dim);
    to.insert(to.end(), token.begin(), token.end());
    auto const last = std::span(to).last(token.size());
    for (std::size_t c = 0; c < token.size(); c += d) rotation_.rotate(last.subspan(c, d), position);
  }
  static void attend_head(std::vector<float> const& q, std::vector<float> const& keys, std::vector<float> const& values,
                          std::size_t head, std::span<float> out) {
    auto const d = static_cast<std::size_t>(shape.head_dim), channels = static_cast<std::size_t>(shape.kv_channels()),
               kv_head = head / static_cast<std::size_t>(shape.q_heads / shape.kv_heads);
    std::vector<double> sum(d);
    double total = 0;
    for (std::size_t token = 0; token < keys.size() / channels; ++token) {
      std::size_t const at = token * channels + kv_head * d;
      double score = 0;
      for (std::size_t c = 0; c < d; ++c) score += double{q[head * d + c]} * double{keys[at + c]};
      double const p = std::exp(score / std::sqrt(static_cast<double>(d)));
      for (std::size_t c = 0; c < d; ++c) sum[c] += p * double{values[at + c]};
      total += p;
    }
    for (std::size_t c = 0; c < d; ++c) out[head * d + c] = static_cast<float>(sum[c] / total);
  }

  kvquant::rope rotation_{shape.rope, shape.head_dim};
  std::vector<std::vector<float>> k_{static_cast<std::size_t>(shape.layers)}, v_{k_};
};

std::vector<float> embeddings(std::size_t tokens, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(tokens * hidden);
  for (float& it : x) it = normal(random);
  return x;
}

// [doc:calibrate]
/// Keys and values as they pass, with what attends over them left as it was.
kvquant::artifact<kvquant::spec<kvquant::nuq<4>, kvquant::nuq<4>>> calibrate(toy_model const& model) {
  kvquant::calibrator statistics(
      {.layers = shape.layers, .kv_channels = shape.kv_channels(), .max_tokens = calibration_tokens});
  auto const pass = [&](auto&& observe) {
    plain_cache exact;
    model.forward(embeddings(calibration_tokens, 1),
                  [&](int layer, view k, view v, view q, kvquant::view2d<float> out) {
                    observe(layer, k, v);
                    exact.attend(layer, k, v, q, out);
                  });
  };
  pass([&](int layer, view k, view) { statistics.observe_range(layer, k); });
  statistics.freeze_ranges();
  pass([&](int layer, view k, view v) { statistics.observe(layer, k, v); });
  return kvquant::fit<kvquant::spec<kvquant::nuq<4>, kvquant::nuq<4>>>(
      statistics, {.shape = shape, .weights = kvquant::fit_weights::activation});
}
// [/doc]

using backend = kvquant::cpu::generic::backend;

/// A prompt, guesses that are taken back, and more tokens.
template <class Attend, class TakeBack>
std::vector<float> run(toy_model const& model, Attend&& attend, TakeBack&& take_back) {
  auto const x = embeddings(end, 2);
  auto const part = [&](std::size_t first, std::size_t last) {
    return std::vector<float>(x.begin() + static_cast<std::ptrdiff_t>(first * hidden),
                              x.begin() + static_cast<std::ptrdiff_t>(last * hidden));
  };
  model.forward(part(0, prompt), attend);
  model.forward(embeddings(3, 3), attend);
  take_back(prompt);
  return model.forward(part(prompt, end), attend);
}

std::vector<float> run_on(toy_model const& model, std::unique_ptr<kvquant::engine> cache) {
  kvquant::inline_executor here;
  // [doc:after]
  auto const chat = cache->open();
  auto const attend = [&](int layer, view k, view v, view q, kvquant::view2d<float> out) {
    chat->append_and_attend(layer, k, v, q, out, {}, here);
  };
  auto const take_back = [&](std::size_t tokens) { chat->truncate(tokens); };
  // [/doc]
  return run(model, attend, take_back);
}

double relative_difference(std::vector<float> const& a, std::vector<float> const& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - double{b[i]}, 2);
    norm += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace

int main() {
  toy_model const model;
  plain_cache plain;
  auto const before = run(
      model, [&](int layer, view k, view v, view q, kvquant::view2d<float> out) { plain.attend(layer, k, v, q, out); },
      [&](std::size_t tokens) { plain.truncate(tokens); });

  auto const artifact = calibrate(model);
  // [doc:make]
  auto cache = kvquant::make_engine<backend>(artifact, {.max_tokens = 1024});
  // [/doc]
  double const in_4_bits = relative_difference(run_on(model, std::move(cache)), before);
  double const in_f16 = relative_difference(
      run_on(model, kvquant::make_engine<backend>(kvquant::make_passthrough_artifact(shape), {.max_tokens = 1024})),
      before);
  std::printf("hidden states move by %.4f in 4 bits, by %.5f in binary16\n", in_4_bits, in_f16);
  return in_f16 < 1e-3 && in_4_bits < 0.05 && in_4_bits > in_f16 ? 0 : 1;
}
