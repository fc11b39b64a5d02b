#include "tools/plan/model_facts.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"

namespace kvquant::plan {

namespace {

model_shape heads(int layers, int q_heads, int kv_heads, int head_dim) {
  return {.layers = layers, .q_heads = q_heads, .kv_heads = kv_heads, .head_dim = head_dim, .rope = {}};
}

model_facts llama(std::string name, model_shape const& shape, int feed_forward, int vocabulary) {
  return {.name = std::move(name),
          .shape = shape,
          .hidden = shape.q_heads * shape.head_dim,
          .feed_forward = feed_forward,
          .vocabulary = vocabulary};
}

model_facts qwen2(std::string name, model_shape const& shape, int feed_forward, int vocabulary, bool tied) {
  model_facts it = llama(std::move(name), shape, feed_forward, vocabulary);
  it.tied_embeddings = tied;
  it.qkv_biases = true;
  return it;
}

/// Five of six layers see a window (arXiv 2503.19786). The language model alone, without the encoder of images.
model_facts gemma3(std::string name, model_shape shape, int hidden, int feed_forward, int vocabulary, int window) {
  shape.local.window = window;
  for (int layer = 0; layer < shape.layers; ++layer)
    if (layer % 6 != 5) shape.local.layers.push_back(layer);
  return {.name = std::move(name),
          .shape = shape,
          .hidden = hidden,
          .feed_forward = feed_forward,
          .vocabulary = vocabulary,
          .tied_embeddings = true,
          .head_norms = true,
          .post_norms = true};
}

/// From the configurations that are published with the weights.
std::vector<model_facts> make_models() {
  return {llama("llama-7b", heads(32, 32, 32, 128), 11008, 32000),
          llama("llama-13b", heads(40, 40, 40, 128), 13824, 32000),
          llama("llama-33b", heads(60, 52, 52, 128), 17920, 32000),
          llama("llama-65b", heads(80, 64, 64, 128), 22016, 32000),
          llama("llama-2-70b", heads(80, 64, 8, 128), 28672, 32000),
          llama("llama-3-8b", heads(32, 32, 8, 128), 14336, 128256),
          llama("llama-3-70b", heads(80, 64, 8, 128), 28672, 128256),
          llama("mistral-7b", heads(32, 32, 8, 128), 14336, 32000),  // of version 0.2, which has no window
          qwen2("qwen2-0.5b", heads(24, 14, 2, 64), 4864, 151936, true),
          qwen2("qwen2-1.5b", heads(28, 12, 2, 128), 8960, 151936, true),
          qwen2("qwen2-7b", heads(28, 28, 4, 128), 18944, 152064, false),
          qwen2("qwen2-72b", heads(80, 64, 8, 128), 29568, 152064, false),
          gemma3("gemma-3-270m", heads(18, 4, 1, 256), 640, 2048, 262144, 512),
          gemma3("gemma-3-1b", heads(26, 4, 1, 256), 1152, 6912, 262144, 512),
          gemma3("gemma-3-4b", heads(34, 8, 4, 256), 2560, 10240, 262208, 1024),
          gemma3("gemma-3-12b", heads(48, 16, 8, 256), 3840, 15360, 262208, 1024),
          gemma3("gemma-3-27b", heads(62, 32, 16, 128), 5376, 21504, 262208, 1024)};
}

}  // namespace

std::size_t model_facts::parameters() const {
  auto const width = static_cast<std::size_t>(hidden), d = static_cast<std::size_t>(shape.head_dim);
  auto const q = static_cast<std::size_t>(shape.q_heads) * d, kv = static_cast<std::size_t>(shape.kv_channels());
  std::size_t const attention = 2 * width * q + 2 * width * kv + (qkv_biases ? q + 2 * kv : 0);
  std::size_t const norms = (post_norms ? 4 : 2) * width + (head_norms ? 2 * d : 0);
  std::size_t const layer = attention + 3 * width * static_cast<std::size_t>(feed_forward) + norms;
  return (tied_embeddings ? 1 : 2) * embedding_parameters() + static_cast<std::size_t>(shape.layers) * layer + width;
}

std::span<model_facts const> known_models() {
  static std::vector<model_facts> const models = make_models();
  return models;
}

model_facts const& find_model(std::string_view name) {
  auto const models = known_models();
  auto const found = std::ranges::find(models, name, &model_facts::name);
  if (found != models.end()) return *found;
  std::string known;
  for (model_facts const& it : models) (known += known.empty() ? "" : ", ") += it.name;
  throw error{errc::bad_value, text("unknown model \"", name, "\", expected a GGUF file or one of ", known)};
}

}  // namespace kvquant::plan
