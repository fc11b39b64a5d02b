#include "runtime/model_config.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string_view>

#include "kvquant/core/error.hpp"
#include "kvquant/quantize/spec.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant::runtime {

namespace {

/// What an architecture's name stands for; all else is metadata.
struct architecture_traits {
  std::string_view name;
  rope_pairing pairing = rope_pairing::half_split;
  activation gate = activation::silu;
  bool qk_norm = false, post_norms = false;
  bool scaled_embeddings = false;  ///< by sqrt(hidden)
  int local_period = 0;            ///< with a window, of so many layers the last sees all tokens; 0: none does
  double local_theta = 0;          ///< of the local layers' RoPE, which is not scaled; 0: theirs is that of all layers
};
constexpr std::array architectures{architecture_traits{.name = "llama", .pairing = rope_pairing::interleaved},
                                   architecture_traits{.name = "qwen2"},
                                   architecture_traits{.name = "gemma3",
                                                       .gate = activation::gelu,
                                                       .qk_norm = true,
                                                       .post_norms = true,
                                                       .scaled_embeddings = true,
                                                       .local_period = 6,
                                                       .local_theta = 10000}};

architecture_traits const& traits_of(gguf_file const& file) {
  std::string_view const name = file.string("general.architecture");
  auto const found = std::ranges::find(architectures, name, &architecture_traits::name);
  if (found != architectures.end()) return *found;
  std::string known;
  for (architecture_traits const& it : architectures) (known += known.empty() ? "" : ", ") += it.name;
  throw error{errc::unsupported, text(file.origin(), ": architecture \"", name, "\", expected one of ", known)};
}

/// Look-ups below "<architecture>.".
class architecture_keys {
 public:
  architecture_keys(gguf_file const& file, std::string prefix) : file_(file), prefix_(std::move(prefix) + ".") {}

  std::string key(std::string_view name) const { return std::string(prefix_).append(name); }
  bool contains(std::string_view name) const { return file_.contains(key(name)); }

  /// A count of 1 to 2³¹ − 1.
  int count(std::string_view name) const { return checked(name, file_.integer(key(name))); }
  int count_or(std::string_view name, int otherwise) const { return contains(name) ? count(name) : otherwise; }
  double number_or(std::string_view name, double otherwise) const { return file_.number_or(key(name), otherwise); }
  std::string_view string_or(std::string_view name, std::string_view otherwise) const {
    return file_.string_or(key(name), otherwise);
  }

  void refuse(std::string_view name, std::string_view feature) const {
    require(!contains(name) || file_.integer(key(name)) == 0, errc::unsupported, file_.origin(), ": ", key(name), ": ",
            feature, " is not supported");
  }

 private:
  int checked(std::string_view name, std::int64_t value) const {
    require(value >= 1 && value <= std::numeric_limits<int>::max(), errc::bad_file, file_.origin(), ": ", key(name),
            " is ", value, ", expected 1 to 2147483647");
    return static_cast<int>(value);
  }

  gguf_file const& file_;
  std::string prefix_;
};

rope_config read_rope(gguf_file const& file, architecture_keys const& keys, architecture_traits const& traits,
                      model_config const& config) {
  rope_config rope;
  rope.pairing = traits.pairing;
  rope.theta = keys.number_or("rope.freq_base", 10000.0);
  rope.rotary_dim = keys.count_or("rope.dimension_count", config.head_dim);
  std::string_view const scaling =
      keys.string_or("rope.scaling.type", keys.contains("rope.scale_linear") ? "linear" : "none");
  rope.factor = keys.number_or("rope.scaling.factor", keys.number_or("rope.scale_linear", 1.0));
  if (scaling == "linear") {
    rope.scaling = rope_scaling::linear;
  } else if (scaling == "yarn") {
    rope.scaling = rope_scaling::yarn;
    rope.original_context = keys.count_or("rope.scaling.original_context_length", config.context);
    rope.attention_factor = keys.number_or("rope.scaling.attn_factor", 1.0) * (0.1 * std::log(rope.factor) + 1);
  } else {
    require(scaling == "none", errc::unsupported, file.origin(), ": rope scaling \"", scaling,
            "\", expected none, linear or yarn");
  }
  if (gguf_tensor const* const factors = file.find_tensor("rope_freqs.weight")) {
    rope.frequency_factors.resize(factors->elements());
    dequantize(factors->type, factors->data, rope.frequency_factors);
  }
  return rope;
}

local_layers read_local(architecture_keys const& keys, architecture_traits const& traits, model_config const& config) {
  local_layers local;
  if (!keys.contains("attention.sliding_window")) return local;
  local.window = keys.count("attention.sliding_window");
  int const period = keys.count_or("attention.sliding_window_pattern", traits.local_period);
  for (int layer = 0; layer < config.layers; ++layer)
    if (period == 0 || layer % period < period - 1) local.layers.push_back(layer);
  double const theta = keys.number_or("rope.freq_base_swa", traits.local_theta);
  local.rope = config.rope;
  if (theta != 0) {
    local.rope = {.pairing = config.rope.pairing, .theta = theta, .rotary_dim = config.rope.rotary_dim};
    local.rope.frequency_factors = config.rope.frequency_factors;
  }
  return local.layers.empty() ? local_layers{} : local;
}

/// The scale is not in the metadata: 1 / sqrt(head_dim) but for Gemma 3 27B, which has 62 layers and divides by
/// sqrt(hidden / q_heads) (arXiv 2503.19786, `query_pre_attn_scalar`).
float softmax_scale_of(model_config const& config) {
  bool const by_hidden = config.architecture == "gemma3" && config.layers == 62;
  return by_hidden ? 1 / std::sqrt(static_cast<float>(config.hidden) / static_cast<float>(config.q_heads)) : 0;
}

/// Throws, naming the file, for shapes and rotations that the library says cannot be.
void check(gguf_file const& file, model_config const& config) {
  try {
    validate(shape_of(config));
    static_cast<void>(rope(config.rope, config.head_dim));
    if (!config.local.layers.empty()) static_cast<void>(rope(config.local.rope, config.head_dim));
  } catch (error const& failure) {
    throw error{failure.code == errc::unsupported ? errc::unsupported : errc::bad_file,
                text(file.origin(), ": ", failure.what())};
  }
}

std::size_t vocabulary_of(gguf_file const& file) { return file.tensor("token_embd.weight").rows(); }

}  // namespace

model_config read_model_config(gguf_file const& file) {
  architecture_traits const& traits = traits_of(file);
  model_config config;
  config.architecture = traits.name;
  config.gate = traits.gate;
  config.qk_norm = traits.qk_norm;
  config.post_norms = traits.post_norms;
  config.name = file.string_or("general.name", config.architecture);
  architecture_keys const keys(file, config.architecture);
  keys.refuse("expert_count", "a mixture of experts");
  config.layers = keys.count("block_count");
  config.hidden = keys.count("embedding_length");
  config.q_heads = keys.count("attention.head_count");
  config.kv_heads = keys.count_or("attention.head_count_kv", config.q_heads);
  config.feed_forward = keys.count("feed_forward_length");
  config.context = keys.count("context_length");
  config.head_dim = keys.count_or("attention.key_length", config.hidden / config.q_heads);
  require(keys.count_or("attention.value_length", config.head_dim) == config.head_dim, errc::unsupported, file.origin(),
          ": keys and values of different length");
  require(config.q_heads % config.kv_heads == 0, errc::bad_file, file.origin(), ": ", config.q_heads,
          " query heads are no multiple of ", config.kv_heads, " KV heads");
  config.rms_epsilon = static_cast<float>(keys.number_or("attention.layer_norm_rms_epsilon", 1e-5));
  require(config.rms_epsilon > 0 && config.rms_epsilon < 1, errc::bad_file, file.origin(), ": rms epsilon is ",
          config.rms_epsilon, ", expected 0 to 1");
  std::size_t const vocabulary = vocabulary_of(file);
  require(vocabulary <= static_cast<std::size_t>(std::numeric_limits<int>::max()), errc::bad_file, file.origin(), ": ",
          vocabulary, " tokens in the vocabulary");
  config.vocabulary = static_cast<int>(vocabulary);
  config.tied_embeddings = file.find_tensor("output.weight") == nullptr;
  if (traits.scaled_embeddings) config.embedding_scale = std::sqrt(static_cast<float>(config.hidden));
  config.softmax_scale = softmax_scale_of(config);
  config.rope = read_rope(file, keys, traits, config);
  check(file, config);  // before as many layers as the file says are counted
  config.local = read_local(keys, traits, config);
  check(file, config);
  return config;
}

}  // namespace kvquant::runtime
