#pragma once
/// \file
/// A transformer as the formulas read, in double precision: what the runtime is held to.

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/gguf.hpp"
#include "runtime/model.hpp"
#include "test/support/tiny_model.hpp"

namespace kvquant::test {

using real_matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The hooks of the runtime, in double.
struct reference_hooks {
  using change = std::function<void(int layer, real_matrix&)>;
  change queries_pre_rope, keys_pre_rope, keys_post_rope, values;
  std::optional<runtime::exact_window> window = std::nullopt;
};

class reference_model {
 public:
  reference_model(tiny_model const& shape, runtime::gguf_file const& file) : shape_(shape), file_(file) {}

  /// After the last norm: [T, hidden].
  real_matrix hidden(std::span<runtime::token_id const> ids, reference_hooks const& hooks = {}) const {
    real_matrix const embeddings = tensor("token_embd.weight");
    real_matrix x(static_cast<Eigen::Index>(ids.size()), shape_.hidden);
    double const scale = shape_.is_gemma() ? std::sqrt(shape_.hidden) : 1;
    for (Eigen::Index t = 0; t < x.rows(); ++t) x.row(t) = scale * embeddings.row(ids[static_cast<std::size_t>(t)]);
    for (int layer = 0; layer < shape_.layers; ++layer) {
      std::string const prefix = "blk." + std::to_string(layer) + ".";
      real_matrix const attended = attention(layer, norm(x, prefix + "attn_norm.weight"), hooks) *
                                   tensor(prefix + "attn_output.weight").transpose();
      x += shape_.is_gemma() ? norm(attended, prefix + "post_attention_norm.weight") : attended;
      real_matrix const fed = feed_forward(prefix, norm(x, prefix + "ffn_norm.weight"));
      x += shape_.is_gemma() ? norm(fed, prefix + "post_ffw_norm.weight") : fed;
    }
    return norm(x, "output_norm.weight");
  }

  real_matrix logits(real_matrix const& hidden) const {
    return hidden * tensor(shape_.tied_embeddings ? "token_embd.weight" : "output.weight").transpose();
  }

  /// Mean cross-entropy of predictions 1 … T−1, nats.
  double loss(std::span<runtime::token_id const> ids, reference_hooks const& hooks = {}) const {
    real_matrix const scores = logits(hidden(ids, hooks));
    double total = 0;
    for (Eigen::Index t = 0; t + 1 < scores.rows(); ++t)
      total += log_sum_exp(scores.row(t)) - scores(t, ids[static_cast<std::size_t>(t) + 1]);
    return total / static_cast<double>(scores.rows() - 1);
  }

  template <class Row>
  static double log_sum_exp(Row const& x) {
    double const most = x.maxCoeff();
    return most + std::log((x.array() - most).exp().sum());
  }

 private:
  real_matrix tensor(std::string const& name) const {
    runtime::gguf_tensor const& it = file_.tensor(name);
    std::vector<float> values(it.elements());
    runtime::dequantize(it.type, it.data, values);
    using float_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    return Eigen::Map<float_matrix const>(values.data(), static_cast<Eigen::Index>(it.rows()),
                                          static_cast<Eigen::Index>(it.cols()))
        .cast<double>();
  }

  /// Of every run of as many channels as there are weights: a row, or each of its heads.
  real_matrix norm(real_matrix const& x, std::string const& weight) const {
    real_matrix const w = tensor(weight);
    Eigen::Index const n = w.cols();
    real_matrix out = x;
    for (Eigen::Index t = 0; t < x.rows(); ++t)
      for (Eigen::Index at = 0; at < x.cols(); at += n) {
        auto const run = x.row(t).segment(at, n);
        out.row(t).segment(at, n) =
            run.cwiseProduct(w.row(0)) / std::sqrt(run.squaredNorm() / static_cast<double>(n) + 1e-5f);
      }
    return out;
  }

  real_matrix feed_forward(std::string const& prefix, real_matrix const& x) const {
    real_matrix const gate = x * tensor(prefix + "ffn_gate.weight").transpose();
    real_matrix const up = x * tensor(prefix + "ffn_up.weight").transpose();
    real_matrix const gated = gate.unaryExpr([this](double g) {
      if (!shape_.is_gemma()) return g / (1 + std::exp(-g));
      return 0.5 * g * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (g + 0.044715 * g * g * g)));
    });
    return gated.cwiseProduct(up) * tensor(prefix + "ffn_down.weight").transpose();
  }

  real_matrix project(real_matrix const& x, std::string const& name) const {
    real_matrix out = x * tensor(name + ".weight").transpose();
    if (shape_.has_biases()) out.rowwise() += tensor(name + ".bias").row(0);
    bool const normed = shape_.is_gemma() && !name.ends_with("attn_v");
    return normed ? norm(out, name + "_norm.weight") : out;
  }

  /// Channels (2i, 2i + 1) make a pair in `llama`, (i, i + rotary_dim / 2) in the others.
  void rotate(real_matrix& x, int layer) const {
    int const pairs = shape_.rotary_dim / 2;
    bool const interleaved = shape_.architecture == "llama";
    real_matrix const factors = shape_.rope_factors ? tensor("rope_freqs.weight") : real_matrix::Ones(1, pairs);
    for (Eigen::Index t = 0; t < x.rows(); ++t)
      for (Eigen::Index head = 0; head < x.cols(); head += shape_.head_dim)
        for (int i = 0; i < pairs; ++i) {
          bool const local = shape_.is_local(layer);
          double const theta = local ? shape_.local_theta : shape_.rope_theta;
          double const frequency = std::pow(theta, -2.0 * i / shape_.rotary_dim) / factors(0, i);
          double const angle = static_cast<double>(t) * frequency / (local ? 1 : shape_.rope_linear_factor);
          double& a = x(t, head + (interleaved ? 2 * i : i));
          double& b = x(t, head + (interleaved ? 2 * i + 1 : i + pairs));
          double const old = a;
          a = old * std::cos(angle) - b * std::sin(angle);
          b = old * std::sin(angle) + b * std::cos(angle);
        }
  }

  real_matrix attention(int layer, real_matrix const& x, reference_hooks const& hooks) const {
    std::string const prefix = "blk." + std::to_string(layer) + ".";
    real_matrix q = project(x, prefix + "attn_q"), k = project(x, prefix + "attn_k"), v = project(x, prefix + "attn_v");
    real_matrix k_exact = k, v_exact = v;
    if (hooks.queries_pre_rope) hooks.queries_pre_rope(layer, q);
    if (hooks.keys_pre_rope) hooks.keys_pre_rope(layer, k);
    rotate(q, layer);
    rotate(k, layer);
    rotate(k_exact, layer);
    if (hooks.keys_post_rope) hooks.keys_post_rope(layer, k);
    if (hooks.values) hooks.values(layer, v);
    real_matrix out(q.rows(), q.cols());
    for (Eigen::Index t = 0; t < q.rows(); ++t)
      for (int head = 0; head < shape_.q_heads; ++head) {
        auto const kv = (head / (shape_.q_heads / shape_.kv_heads)) * shape_.head_dim;
        auto const is_exact = [&](auto const& first, Eigen::Index j) {
          return hooks.window && j >= first(static_cast<int>(t));
        };
        Eigen::VectorXd p = Eigen::VectorXd::Constant(t + 1, -std::numeric_limits<double>::infinity());
        for (Eigen::Index j = shape_.is_local(layer) ? std::max<Eigen::Index>(0, t + 1 - shape_.window) : 0; j <= t;
             ++j) {
          bool const exact = hooks.window && is_exact(hooks.window->first_key, j);
          p(j) = q.row(t)
                     .segment(head * shape_.head_dim, shape_.head_dim)
                     .dot((exact ? k_exact : k).row(j).segment(kv, shape_.head_dim)) /
                 std::sqrt(shape_.head_dim);
        }
        p = (p.array() - log_sum_exp(p)).exp();
        auto sum = out.row(t).segment(head * shape_.head_dim, shape_.head_dim);
        sum.setZero();
        for (Eigen::Index j = 0; j <= t; ++j) {
          bool const exact = hooks.window && is_exact(hooks.window->first_value, j);
          sum += p(j) * (exact ? v_exact : v).row(j).segment(kv, shape_.head_dim);
        }
      }
    return out;
  }

  tiny_model shape_;
  runtime::gguf_file const& file_;
};

}  // namespace kvquant::test
