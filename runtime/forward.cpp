#include "kvquant/core/error.hpp"
#include "kvquant/core/scoped_timer.hpp"
#include "runtime/model.hpp"
#include "runtime/model_state.hpp"
#include "runtime/profile.hpp"

namespace kvquant::runtime {

namespace {

/// The matrices of a layer, used again for the next.
class layer_pass {
 public:
  layer_pass(model::state const& s, std::size_t tokens, profile* spent) : s_(s), spent_(spent) {
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

  /// x [T, hidden] passes through a layer in place. `attend(layer, q, k, v, out)` may change q, k and v.
  template <class Attend>
  void run(int layer, matrix& x, Attend&& attend) {
    layer_weights const& w = s_.layers[static_cast<std::size_t>(layer)];
    auto const normed = view_of(normed_);
    s_.norm(view_of(x), w.attention_norm, normed);
    project(normed, *w.q, w.q_bias, view_of(q_));
    project(normed, *w.k, w.k_bias, view_of(k_));
    project(normed, *w.v, w.v_bias, view_of(v_));
    s_.norm_heads(view_of(q_), w.q_norm);
    s_.norm_heads(view_of(k_), w.k_norm);
    attend(layer, q_, k_, v_, view_of(attended_));
    add_branch(view_of(attended_), *w.attention_out, w.attention_post_norm, view_of(x));

    s_.norm(view_of(x), w.feed_forward_norm, normed);
    project(normed, *w.gate, {}, view_of(gate_));
    project(normed, *w.up, {}, view_of(up_));
    s_.gate(view_of(gate_), view_of(up_));
    add_branch(view_of(gate_), *w.down, w.feed_forward_post_norm, view_of(x));
  }

 private:
  void project(view2d<float const> x, gguf_tensor const& weight, std::span<float const> bias, view2d<float> out) {
    scoped_timer const timer(spent_, &profile::products);
    s_.project(x, weight, bias, out, scratch_);
  }
  /// What attention or feed-forward adds: x · Wᵀ, normed if there is a norm for it.
  void add_branch(view2d<float const> x, gguf_tensor const& weight, std::span<float const> post_norm,
                  view2d<float> sum) {
    if (post_norm.empty()) {
      scoped_timer const timer(spent_, &profile::products);
      multiply(x, weight, sum, accumulate::yes, scratch_, s_.executor);
      return;
    }
    auto const branch = view_of(normed_);
    project(x, weight, {}, branch);
    s_.norm(branch, post_norm, branch);
    s_.for_tokens(sum.rows, [&](std::size_t t) {
      for (std::size_t c = 0; c < sum.cols; ++c) sum(t, c) += branch(t, c);
    });
  }

  model::state const& s_;
  profile* spent_;
  weight_scratch scratch_;
  matrix normed_, q_, k_, v_, attended_, gate_, up_;
};

/// Attention over a window whose keys, values and queries a hook may change.
class hooked_attention {
 public:
  hooked_attention(model::state const& s, std::size_t tokens, kv_hook* hook)
      : s_(s), hook_(hook), window_(hook == nullptr ? std::nullopt : hook->window()), angles_(s.angles(tokens)) {}

  void operator()(int layer, matrix& q_rows, matrix& k_rows, matrix& v_rows, view2d<float> out) {
    auto const q = view_of(q_rows), k = view_of(k_rows), v = view_of(v_rows);
    auto const& angles = s_.angles_of(layer, angles_);
    if (window_) {
      k_exact_ = k_rows;
      v_exact_ = v_rows;
      s_.rotate(view_of(k_exact_), angles, model::state::direction::forward);
    }
    if (hook_ != nullptr) {
      hook_->queries_pre_rope(layer, q);
      hook_->keys_pre_rope(layer, k);
    }
    s_.rotate(q, angles, model::state::direction::forward);
    s_.rotate(k, angles, model::state::direction::forward);
    if (hook_ != nullptr) {
      hook_->keys_post_rope(layer, k);
      hook_->values(layer, v);
    }
    attend(s_.attention(layer), {q, k, v, window_ ? &*window_ : nullptr, view_of(k_exact_), view_of(v_exact_)}, out,
           s_.executor);
  }

 private:
  model::state const& s_;
  kv_hook* hook_;
  std::optional<exact_window> window_;
  window_angles angles_;
  matrix k_exact_, v_exact_;
};

template <class Attend>
matrix run_layers(model::state const& s, std::span<token_id const> ids, profile* spent, Attend&& attend) {
  matrix x(static_cast<Eigen::Index>(ids.size()), s.config.hidden);
  s.embed(ids, view_of(x));
  layer_pass pass(s, ids.size(), spent);
  for (int layer = 0; layer < s.config.layers; ++layer) pass.run(layer, x, attend);
  s.norm(view_of(x), s.output_norm, view_of(x));
  return x;
}

}  // namespace

matrix model::forward(std::span<token_id const> ids, kv_hook* hook) const {
  state_->check(ids);
  return run_layers(*state_, ids, nullptr, hooked_attention(*state_, ids.size(), hook));
}

matrix model::forward(std::span<token_id const> ids, attention_function const& attention, profile* spent) const {
  state_->check(ids);
  auto const attend = [&](int layer, matrix const& q, matrix const& k, matrix const& v, view2d<float> out) {
    attention(layer, view_of(q), view_of(k), view_of(v), out);
  };
  return run_layers(*state_, ids, spent, attend);
}

}  // namespace kvquant::runtime
