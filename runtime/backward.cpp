#include <algorithm>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/kernels.hpp"
#include "runtime/model.hpp"
#include "runtime/model_state.hpp"

namespace kvquant::runtime {

namespace {

using direction = model::state::direction;

/// What a layer's backward pass needs of its forward pass; what goes into norms and gates is cheap to compute again.
struct layer_tape {
  matrix x;        // [T, hidden] the layer's input
  matrix q, k, v;  // after RoPE
  matrix k_pre_rope;
  matrix attended;  // [T, q_channels]
  matrix x_middle;  // [T, hidden] after attention
};

class backward_pass {
 public:
  backward_pass(model::state const& s, std::span<token_id const> ids)
      : s_(s), ids_(ids), rows_(static_cast<Eigen::Index>(ids.size())), angles_(s.angles(ids.size())) {}

  double run(gradient_sink const& sink) {
    std::vector<layer_tape> tapes;
    matrix x(rows_, s_.config.hidden);
    s_.embed(ids_, view_of(x));
    for (int layer = 0; layer < s_.config.layers; ++layer) tapes.push_back(forward(layer, x));
    matrix dx;
    double const loss = loss_gradient(x, dx);
    for (int layer = s_.config.layers - 1; layer >= 0; --layer) {
      backward(layer, tapes.back(), dx, sink);
      tapes.pop_back();
    }
    return loss;
  }

 private:
  matrix like(int cols) const { return {rows_, static_cast<Eigen::Index>(cols)}; }

  layer_weights const& weights(int layer) const { return s_.layers[static_cast<std::size_t>(layer)]; }

  layer_tape forward(int layer, matrix& x) {
    auto const& c = s_.config;
    layer_weights const& w = weights(layer);
    auto const& angles = s_.angles_of(layer, angles_);
    layer_tape tape{x, like(c.q_channels()), like(c.kv_channels()), like(c.kv_channels()), {}, like(c.q_channels()),
                    {}};
    matrix normed = like(c.hidden);
    s_.norm(view_of(x), w.attention_norm, view_of(normed));
    s_.project(view_of(normed), *w.q, w.q_bias, view_of(tape.q), scratch_);
    s_.project(view_of(normed), *w.k, w.k_bias, view_of(tape.k), scratch_);
    s_.project(view_of(normed), *w.v, w.v_bias, view_of(tape.v), scratch_);
    s_.norm_heads(view_of(tape.q), w.q_norm);
    s_.norm_heads(view_of(tape.k), w.k_norm);
    tape.k_pre_rope = tape.k;
    s_.rotate(view_of(tape.q), angles, direction::forward);
    s_.rotate(view_of(tape.k), angles, direction::forward);
    attend(s_.attention(layer), attention_of(tape), view_of(tape.attended), s_.executor);
    add_branch(tape.attended, *w.attention_out, w.attention_post_norm, x);
    tape.x_middle = x;
    matrix gate, up;
    gate_and_up(w, x, normed, gate, up);
    s_.gate(view_of(gate), view_of(up));
    add_branch(gate, *w.down, w.feed_forward_post_norm, x);
    return tape;
  }

  /// x += y · Wᵀ, normed if there is a norm for it.
  void add_branch(matrix const& y, gguf_tensor const& weight, std::span<float const> post_norm, matrix& x) {
    if (post_norm.empty()) {
      multiply(view_of(y), weight, view_of(x), accumulate::yes, scratch_, s_.executor);
      return;
    }
    matrix branch = like(s_.config.hidden);
    multiply(view_of(y), weight, view_of(branch), accumulate::no, scratch_, s_.executor);
    s_.norm(view_of(branch), post_norm, view_of(branch));
    x += branch;
  }

  /// The gradient with respect to y · Wᵀ, given the one with respect to what it adds.
  matrix branch_gradient(matrix const& y, gguf_tensor const& weight, std::span<float const> post_norm,
                         matrix const& dx) {
    if (post_norm.empty()) return dx;
    matrix branch = like(s_.config.hidden), d_branch = matrix::Zero(rows_, s_.config.hidden);
    multiply(view_of(y), weight, view_of(branch), accumulate::no, scratch_, s_.executor);
    add_norm_gradient(branch, post_norm, dx, d_branch);
    return d_branch;
  }

  /// `d` goes from a gradient with respect to normed heads to one with respect to heads that are not.
  void head_norm_gradient(view2d<float const> normed, gguf_tensor const& weight, std::span<float const> bias,
                          std::span<float const> norm, matrix& d) {
    if (norm.empty()) return;
    matrix heads(rows_, d.cols()), d_heads = matrix::Zero(rows_, d.cols());
    s_.project(normed, weight, bias, view_of(heads), scratch_);
    auto const in = view_of(heads), out = view_of(d), to = view_of(d_heads);
    s_.for_tokens(in.rows, [&](std::size_t t) {
      for (std::size_t at = 0; at < in.cols; at += norm.size())
        kernels::rms_norm_backward(in.row(t).subspan(at, norm.size()), norm, s_.config.rms_epsilon,
                                   out.row(t).subspan(at, norm.size()), to.row(t).subspan(at, norm.size()));
    });
    d = std::move(d_heads);
  }

  static attention_input attention_of(layer_tape const& tape) {
    return {view_of(tape.q), view_of(tape.k), view_of(tape.v), nullptr, {}, {}};
  }

  void gate_and_up(layer_weights const& w, matrix const& x_middle, matrix& normed, matrix& gate, matrix& up) {
    gate = like(s_.config.feed_forward);
    up = like(s_.config.feed_forward);
    s_.norm(view_of(x_middle), w.feed_forward_norm, view_of(normed));
    s_.project(view_of(normed), *w.gate, {}, view_of(gate), scratch_);
    s_.project(view_of(normed), *w.up, {}, view_of(up), scratch_);
  }

  /// The mean loss of predictions 1 … T−1, and its gradient with respect to the last layer's output.
  double loss_gradient(matrix const& x, matrix& dx) {
    constexpr std::size_t slab = 128;
    auto const& c = s_.config;
    std::size_t const predictions = ids_.size() - 1;
    auto const scale = 1.0f / static_cast<float>(predictions);
    matrix normed = like(c.hidden), d_normed = matrix::Zero(rows_, c.hidden);
    s_.norm(view_of(x), s_.output_norm, view_of(normed));
    matrix scores(static_cast<Eigen::Index>(slab), c.vocabulary);
    std::vector<double> losses(predictions);
    for (std::size_t first = 0; first < predictions; first += slab) {
      std::size_t const count = std::min(slab, predictions - first);
      auto const rows = view_of(scores).middle_rows(0, count);
      multiply(view_of(std::as_const(normed)).middle_rows(first, count), *s_.output, rows, accumulate::no, scratch_,
               s_.executor);
      s_.for_tokens(count, [&](std::size_t i) {
        auto const target = static_cast<std::size_t>(ids_[first + i + 1]);
        double const lse = kernels::log_sum_exp(rows.row(i));
        losses[first + i] = lse - static_cast<double>(rows(i, target));
        kernels::scaled_probabilities(rows.row(i), lse, scale);
        rows(i, target) -= scale;
      });
      multiply_back(rows, *s_.output, view_of(d_normed).middle_rows(first, count), accumulate::no, scratch_,
                    s_.executor);
    }
    dx = matrix::Zero(rows_, c.hidden);
    add_norm_gradient(x, s_.output_norm, d_normed, dx);
    double sum = 0;
    for (double const loss : losses) sum += loss;
    return sum / static_cast<double>(predictions);
  }

  void add_norm_gradient(matrix const& x, std::span<float const> weight, matrix const& d_out, matrix& dx) const {
    auto const in = view_of(x), out = view_of(d_out);
    auto const to = view_of(dx);
    s_.for_tokens(in.rows, [&](std::size_t t) {
      kernels::rms_norm_backward(in.row(t), weight, s_.config.rms_epsilon, out.row(t), to.row(t));
    });
  }

  /// `dx` is the gradient with respect to the layer's output, then to its input.
  void backward(int layer, layer_tape const& tape, matrix& dx, gradient_sink const& sink) {
    feed_forward_backward(weights(layer), tape, dx);
    attention_backward(layer, tape, dx, sink);
  }

  void feed_forward_backward(layer_weights const& w, layer_tape const& tape, matrix& dx) {
    auto const& c = s_.config;
    matrix normed = like(c.hidden), gate, up, d_inner = like(c.feed_forward), d_normed = like(c.hidden);
    gate_and_up(w, tape.x_middle, normed, gate, up);
    matrix inner;
    if (!w.feed_forward_post_norm.empty()) s_.gate(view_of(inner = gate), view_of(up));
    matrix const d_branch = branch_gradient(inner, *w.down, w.feed_forward_post_norm, dx);
    multiply_back(view_of(d_branch), *w.down, view_of(d_inner), accumulate::no, scratch_, s_.executor);
    auto const g = view_of(gate), u = view_of(up);
    s_.gate_backward(g, u, view_of(d_inner));
    multiply_back(g, *w.gate, view_of(d_normed), accumulate::no, scratch_, s_.executor);
    multiply_back(u, *w.up, view_of(d_normed), accumulate::yes, scratch_, s_.executor);
    add_norm_gradient(tape.x_middle, w.feed_forward_norm, d_normed, dx);
  }

  void attention_backward(int layer, layer_tape const& tape, matrix& dx, gradient_sink const& sink) {
    auto const& c = s_.config;
    layer_weights const& w = weights(layer);
    auto const& angles = s_.angles_of(layer, angles_);
    matrix d_attended = like(c.q_channels()), dq = like(c.q_channels()), dk = like(c.kv_channels()), dv = dk;
    matrix const d_branch = branch_gradient(tape.attended, *w.attention_out, w.attention_post_norm, dx);
    multiply_back(view_of(d_branch), *w.attention_out, view_of(d_attended), accumulate::no, scratch_, s_.executor);
    attend_backward(s_.attention(layer), attention_of(tape), view_of(d_attended), view_of(dq), view_of(dk), view_of(dv),
                    s_.executor);
    matrix const dk_post_rope = dk;
    s_.rotate(view_of(dk), angles, direction::back);
    sink(layer, {view_of(tape.k_pre_rope), view_of(tape.k), view_of(tape.v), view_of(std::as_const(dk)),
                 view_of(dk_post_rope), view_of(std::as_const(dv))});
    if (layer == 0) return;
    s_.rotate(view_of(dq), angles, direction::back);
    matrix normed, d_normed = like(c.hidden);
    if (c.qk_norm) s_.norm(view_of(tape.x), w.attention_norm, view_of(normed = like(c.hidden)));
    head_norm_gradient(view_of(normed), *w.q, w.q_bias, w.q_norm, dq);
    head_norm_gradient(view_of(normed), *w.k, w.k_bias, w.k_norm, dk);
    multiply_back(view_of(std::as_const(dq)), *w.q, view_of(d_normed), accumulate::no, scratch_, s_.executor);
    multiply_back(view_of(std::as_const(dk)), *w.k, view_of(d_normed), accumulate::yes, scratch_, s_.executor);
    multiply_back(view_of(std::as_const(dv)), *w.v, view_of(d_normed), accumulate::yes, scratch_, s_.executor);
    add_norm_gradient(tape.x, w.attention_norm, d_normed, dx);
  }

  model::state const& s_;
  std::span<token_id const> ids_;
  Eigen::Index rows_;
  window_angles angles_;
  weight_scratch scratch_;
};

}  // namespace

double model::loss_and_gradients(std::span<token_id const> ids, gradient_sink const& sink) const {
  state_->check(ids);
  require(ids.size() >= 2, errc::bad_value, "loss: one token, expected two or more: there is nothing to predict");
  return backward_pass(*state_, ids).run(sink);
}

}  // namespace kvquant::runtime
