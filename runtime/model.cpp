#include "runtime/model.hpp"

#include <cmath>
#include <utility>

#include "kvquant/core/error.hpp"
#include "kvquant/core/scoped_timer.hpp"
#include "runtime/kernels.hpp"
#include "runtime/model_state.hpp"
#include "runtime/profile.hpp"

namespace kvquant::runtime {

namespace {

/// Takes tensors out of a file, checking shape and values.
class tensor_reader {
 public:
  tensor_reader(gguf_file const& file, executor_ref executor) : file_(file), executor_(executor) {}

  gguf_tensor const& weight(std::string const& name, int outputs, int inputs) {
    gguf_tensor const& it = file_.tensor(name);
    check_shape(it, {static_cast<std::size_t>(inputs), static_cast<std::size_t>(outputs)});
    check_values(it);
    bytes_ += it.data.size();
    return it;
  }

  std::vector<float> vector(std::string const& name, int size) {
    gguf_tensor const& it = file_.tensor(name);
    check_shape(it, {static_cast<std::size_t>(size)});
    check_values(it);
    std::vector<float> values(it.elements());
    dequantize(it.type, it.data, values);
    bytes_ += it.data.size();
    return values;
  }
  std::vector<float> optional_vector(std::string const& name, int size) {
    return file_.find_tensor(name) == nullptr ? std::vector<float>{} : vector(name, size);
  }
  void refuse(std::string const& name) const {
    require(file_.find_tensor(name) == nullptr, errc::unsupported, file_.origin(), ": tensor \"", name,
            "\" has no place in this runtime's ", file_.string("general.architecture"), " models");
  }

  std::size_t bytes() const { return bytes_; }

 private:
  static std::string print(std::vector<std::size_t> const& shape) {
    std::string out;
    for (std::size_t const size : shape) out += (out.empty() ? "" : " x ") + std::to_string(size);
    return out;
  }

  void check_shape(gguf_tensor const& it, std::vector<std::size_t> const& expected) const {
    std::vector<std::size_t> found = it.shape;
    while (found.size() > expected.size() && found.back() == 1) found.pop_back();
    require(found == expected, errc::bad_file, file_.origin(), ": tensor \"", std::string(it.name), "\" is ",
            print(it.shape), ", expected ", print(expected));
  }

  void check_values(gguf_tensor const& it) const {
    constexpr std::size_t block_rows = 64;
    std::size_t const row_bytes = it.data.size() / it.rows();
    executor_.parallel_for((it.rows() + block_rows - 1) / block_rows, [&](std::size_t task, int) {
      std::size_t const first = task * block_rows, rows = std::min(block_rows, it.rows() - first);
      std::vector<float> values(rows * it.cols());
      dequantize(it.type, it.data.subspan(first * row_bytes, rows * row_bytes), values);
      for (std::size_t i = 0; i < values.size(); ++i)
        if (!std::isfinite(values[i])) [[unlikely]]
          throw error{errc::bad_value, text(file_.origin(), ": tensor \"", std::string(it.name), "\", row ",
                                            first + i / it.cols(), " holds ", values[i], ", expected finite weights")};
    });
  }

  gguf_file const& file_;
  executor_ref executor_;
  std::size_t bytes_ = 0;
};

layer_weights read_layer(tensor_reader& reader, model_config const& c, int layer) {
  std::string const at = "blk." + std::to_string(layer) + ".";
  for (char const* const name : {"attn_output.bias", "ffn_up.bias", "ffn_gate.bias", "ffn_down.bias"})
    reader.refuse(at + name);
  auto const norm_if = [&](bool there, char const* name, int size) {
    if (there) return reader.vector(at + name, size);
    reader.refuse(at + name);
    return std::vector<float>{};
  };
  return {reader.vector(at + "attn_norm.weight", c.hidden),
          reader.vector(at + "ffn_norm.weight", c.hidden),
          &reader.weight(at + "attn_q.weight", c.q_channels(), c.hidden),
          &reader.weight(at + "attn_k.weight", c.kv_channels(), c.hidden),
          &reader.weight(at + "attn_v.weight", c.kv_channels(), c.hidden),
          &reader.weight(at + "attn_output.weight", c.hidden, c.q_channels()),
          &reader.weight(at + "ffn_gate.weight", c.feed_forward, c.hidden),
          &reader.weight(at + "ffn_up.weight", c.feed_forward, c.hidden),
          &reader.weight(at + "ffn_down.weight", c.hidden, c.feed_forward),
          reader.optional_vector(at + "attn_q.bias", c.q_channels()),
          reader.optional_vector(at + "attn_k.bias", c.kv_channels()),
          reader.optional_vector(at + "attn_v.bias", c.kv_channels()),
          norm_if(c.qk_norm, "attn_q_norm.weight", c.head_dim),
          norm_if(c.qk_norm, "attn_k_norm.weight", c.head_dim),
          norm_if(c.post_norms, "post_attention_norm.weight", c.hidden),
          norm_if(c.post_norms, "post_ffw_norm.weight", c.hidden)};
}

}  // namespace

model::model(gguf_file const& file, executor_ref executor) {
  model_config const config = read_model_config(file);
  tensor_reader reader(file, executor);
  gguf_tensor const& embedding = reader.weight("token_embd.weight", config.vocabulary, config.hidden);
  state_ = std::make_unique<state>(
      state{config,
            shape_of(config),
            executor,
            rope(config.rope, config.head_dim),
            &embedding,
            config.tied_embeddings ? &embedding : &reader.weight("output.weight", config.vocabulary, config.hidden),
            reader.vector("output_norm.weight", config.hidden),
            {}});
  for (int layer = 0; layer < config.layers; ++layer) state_->layers.push_back(read_layer(reader, config, layer));
  state_->weight_bytes = reader.bytes();
}

model::model(model&&) noexcept = default;
model& model::operator=(model&&) noexcept = default;
model::~model() = default;

model_config const& model::config() const { return state_->config; }
std::size_t model::weight_bytes() const { return state_->weight_bytes; }
executor_ref model::executor() const { return state_->executor; }

attention_shape model::state::attention(int layer) const {
  return {static_cast<std::size_t>(config.q_heads), static_cast<std::size_t>(config.kv_heads),
          static_cast<std::size_t>(config.head_dim),
          config.softmax_scale != 0 ? config.softmax_scale : 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
          shape.window_of(layer)};
}

window_angles model::state::angles(std::size_t tokens) const {
  auto const of_all = rotation.angle_table<float>(0, tokens);
  if (shape.local.layers.empty()) return {of_all, rope_angle_table<float>(0, 0, 0)};
  return {of_all, rope(shape.local.rope, config.head_dim).angle_table<float>(0, tokens)};
}

void model::state::check(std::span<token_id const> ids) const {
  require(!ids.empty(), errc::bad_value, "model: no tokens");
  for (std::size_t i = 0; i < ids.size(); ++i)
    require(ids[i] >= 0 && ids[i] < config.vocabulary, errc::bad_value, "model: token ", i, " is ", ids[i],
            ", expected 0 to ", config.vocabulary - 1);
}

void model::state::embed(std::span<token_id const> ids, view2d<float> out) const {
  std::size_t const row_bytes = embedding->data.size() / embedding->rows();
  for_tokens(ids.size(), [&](std::size_t t) {
    dequantize(embedding->type, embedding->data.subspan(static_cast<std::size_t>(ids[t]) * row_bytes, row_bytes),
               out.row(t));
    if (config.embedding_scale != 1)
      for (float& x : out.row(t)) x *= config.embedding_scale;
  });
}

void model::state::norm(view2d<float const> x, std::span<float const> weight, view2d<float> out) const {
  for_tokens(x.rows, [&](std::size_t t) { kernels::rms_norm(x.row(t), weight, config.rms_epsilon, out.row(t)); });
}

void model::state::norm_heads(view2d<float> x, std::span<float const> weight) const {
  if (weight.empty()) return;
  for_tokens(x.rows, [&](std::size_t t) {
    for (std::size_t at = 0; at < x.cols; at += weight.size()) {
      auto const head = x.row(t).subspan(at, weight.size());
      kernels::rms_norm(head, weight, config.rms_epsilon, head);
    }
  });
}

void model::state::gate(view2d<float> gate, view2d<float const> up) const {
  auto const multiply = config.gate == activation::gelu ? kernels::gelu_multiply : kernels::silu_multiply;
  for_tokens(gate.rows, [&](std::size_t t) { multiply(gate.row(t), up.row(t), gate.row(t)); });
}

void model::state::gate_backward(view2d<float> gate, view2d<float> up, view2d<float const> d_out) const {
  auto const backward =
      config.gate == activation::gelu ? kernels::gelu_multiply_backward : kernels::silu_multiply_backward;
  for_tokens(gate.rows, [&](std::size_t t) { backward(gate.row(t), up.row(t), d_out.row(t)); });
}

void model::state::project(view2d<float const> x, gguf_tensor const& weight, std::span<float const> bias,
                           view2d<float> out, weight_scratch& scratch) const {
  multiply(x, weight, out, accumulate::no, scratch, executor);
  if (bias.empty()) return;
  for_tokens(out.rows, [&](std::size_t t) {
    for (std::size_t c = 0; c < bias.size(); ++c) out(t, c) += bias[c];
  });
}

void model::state::rotate(view2d<float> x, rope_angle_table<float> const& angles, direction way) const {
  auto const head_dim = static_cast<std::size_t>(config.head_dim);
  for_tokens(x.rows, [&](std::size_t t) {
    for (std::size_t at = 0; at < x.cols; at += head_dim) {
      if (way == direction::forward)
        rotation.rotate(x.row(t).subspan(at, head_dim), angles[t]);
      else
        rotation.rotate_back(x.row(t).subspan(at, head_dim), angles[t]);
    }
  });
}

void model::logits(view2d<float const> hidden, view2d<float> out, profile* spent) const {
  auto const& c = state_->config;
  require(hidden.cols == static_cast<std::size_t>(c.hidden) && out.cols == static_cast<std::size_t>(c.vocabulary) &&
              out.rows == hidden.rows,
          errc::bad_shape, "logits: ", hidden.rows, " x ", hidden.cols, " to ", out.rows, " x ", out.cols,
          ", expected ", c.hidden, " columns to ", c.vocabulary);
  scoped_timer const timer(spent, &profile::logits);
  weight_scratch scratch;
  multiply(hidden, *state_->output, out, accumulate::no, scratch, state_->executor);
}

}  // namespace kvquant::runtime
