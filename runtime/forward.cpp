#include "kvquant/core/error.hpp"
#include "runtime/kernels.hpp"
#include "runtime/model.hpp"
#include "runtime/model_state.hpp"

namespace kvquant::runtime {

namespace {

/// One forward pass: the matrices of a layer, used again for the next.
class forward_pass {
 public:
  forward_pass(model::state const& s, std::size_t tokens, kv_hook* hook)
      : s_(s),
        hook_(hook),
        window_(hook == nullptr ? std::nullopt : hook->window()),
        angles_(s.rotation.angle_table<float>(0, tokens)) {
    auto const rows = static_cast<Eigen::Index>(tokens);
    auto const& c = s.config;
    normed_.resize(rows, c.hidden);
    q_.resize(rows, c.q_channels());
    k_.resize(rows, c.kv_channels());
    v_.resize(rows, c.kv_channels());
    attended_.resize(rows, c.q_channels());
    gate_.resize(rows, c.feed_forward);
    up_.resize(rows, c.feed_forward);
  }

  /// x [T, hidden] passes through a layer in place.
  void run(int layer, matrix& x) {
    layer_weights const& w = s_.layers[static_cast<std::size_t>(layer)];
    auto const normed = view_of(normed_);
    s_.norm(view_of(x), w.attention_norm, normed);
    s_.project(normed, *w.q, w.q_bias, view_of(q_), scratch_);
    s_.project(normed, *w.k, w.k_bias, view_of(k_), scratch_);
    s_.project(normed, *w.v, w.v_bias, view_of(v_), scratch_);
    attend_with_hooks(layer);
    multiply(view_of(attended_), *w.attention_out, view_of(x), accumulate::yes, scratch_, s_.executor);

    s_.norm(view_of(x), w.feed_forward_norm, normed);
    s_.project(normed, *w.gate, {}, view_of(gate_), scratch_);
    s_.project(normed, *w.up, {}, view_of(up_), scratch_);
    auto const gate = view_of(gate_), up = view_of(up_);
    s_.for_tokens(gate.rows, [&](std::size_t t) { kernels::silu_multiply(gate.row(t), up.row(t), gate.row(t)); });
    multiply(gate, *w.down, view_of(x), accumulate::yes, scratch_, s_.executor);
  }

 private:
  void attend_with_hooks(int layer) {
    auto const q = view_of(q_), k = view_of(k_), v = view_of(v_);
    if (window_) {
      k_exact_ = k_;
      v_exact_ = v_;
      s_.rotate(view_of(k_exact_), angles_, model::state::direction::forward);
    }
    if (hook_ != nullptr) {
      hook_->queries_pre_rope(layer, q);
      hook_->keys_pre_rope(layer, k);
    }
    s_.rotate(q, angles_, model::state::direction::forward);
    s_.rotate(k, angles_, model::state::direction::forward);
    if (hook_ != nullptr) {
      hook_->keys_post_rope(layer, k);
      hook_->values(layer, v);
    }
    attend(s_.attention(), {q, k, v, window_ ? &*window_ : nullptr, view_of(k_exact_), view_of(v_exact_)},
           view_of(attended_), s_.executor);
  }

  model::state const& s_;
  kv_hook* hook_;
  std::optional<exact_window> window_;
  rope_angle_table<float> angles_;
  weight_scratch scratch_;
  matrix normed_, q_, k_, v_, k_exact_, v_exact_, attended_, gate_, up_;
};

}  // namespace

matrix model::forward(std::span<token_id const> ids, kv_hook* hook) const {
  state_->check(ids);
  matrix x(static_cast<Eigen::Index>(ids.size()), state_->config.hidden);
  state_->embed(ids, view_of(x));
  forward_pass pass(*state_, ids.size(), hook);
  for (int layer = 0; layer < state_->config.layers; ++layer) pass.run(layer, x);
  state_->norm(view_of(x), state_->output_norm, view_of(x));
  return x;
}

}  // namespace kvquant::runtime
