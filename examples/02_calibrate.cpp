/// \file
/// Calibrates on keys, values and gradients that a runtime would supply, writes the artifact, reads it back, and
/// quantizes a token with it.

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <random>
#include <vector>

#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/kvquant.hpp"

namespace {

constexpr int layers = 2, kv_heads = 2, head_dim = 32;
constexpr std::size_t tokens = 512, channels = std::size_t{kv_heads} * head_dim;

/// What a runtime's forward and backward pass would give: here, random numbers.
struct window {
  std::vector<float> k, v, k_fisher, v_fisher;  // [tokens, channels]; Fisher: squared gradients of the loss

  explicit window(unsigned seed) : k(tokens * channels), v(k.size()), k_fisher(k.size()), v_fisher(k.size()) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < k.size(); ++i) {
      k[i] = std::sin(static_cast<float>(i % channels)) + normal(random);
      v[i] = normal(random);
      k_fisher[i] = 1e-6f * std::exp(normal(random));
      v_fisher[i] = 1e-6f * std::exp(normal(random));
    }
  }
};

kvquant::view2d<float const> view(std::vector<float> const& x) { return {x.data(), tokens, channels}; }

}  // namespace

int main() {
  namespace fs = std::filesystem;
  fs::path const path = fs::temp_directory_path() / "kvquant_example_02.kvq";
  std::vector<window> const windows = {window(1), window(2)};

  // [doc:embed]
  using spec = kvquant::spec<kvquant::nuq<3>, kvquant::nuq<3>>;  // of keys, of values
  kvquant::calibrator statistics({.layers = layers, .kv_channels = kv_heads * head_dim, .max_tokens = 2 * tokens});
  for (window const& it : windows)
    for (int layer = 0; layer < layers; ++layer) statistics.observe_range(layer, view(it.k));
  statistics.freeze_ranges();
  for (window const& it : windows)
    for (int layer = 0; layer < layers; ++layer)
      statistics.observe(layer, view(it.k), view(it.v), view(it.k_fisher), view(it.v_fisher));
  kvquant::model_shape const shape{.layers = layers, .q_heads = 4, .kv_heads = kv_heads, .head_dim = head_dim};
  auto fitted = kvquant::fit<spec>(statistics, {.shape = shape, .origin = {.model_hash = "the model's"}});
  kvquant::save(fitted, path);

  auto const artifact = kvquant::load_artifact<spec>(path);
  auto const keys = artifact.keys(0);  // of layer 0; before RoPE
  auto const values = artifact.values(0);
  auto selector = values.make_selector();  // scratch of one thread
  std::vector<std::uint8_t> k_codes(channels), v_codes(channels);
  std::vector<kvquant::outlier> outliers;  // channel and residual: added to what the code reads as
  auto const keep = [&](kvquant::outlier it) { outliers.push_back(it); };
  keys.quantize(view(windows[0].k).row(7), k_codes, keep);
  auto const range = values.quantize(view(windows[0].v).row(7), v_codes, selector, keep);
  float const key = keys.decode(5, k_codes[5]), value = values.decode(kvquant::affine_of(range), v_codes[5]);
  // [/doc]

  float const k = view(windows[0].k)(7, 5), v = view(windows[0].v)(7, 5);
  std::printf("%s: key %.3f reads as %.3f, value %.3f as %.3f; token 7 has %zu outliers\n", artifact.info.spec.c_str(),
              static_cast<double>(k), static_cast<double>(key), static_cast<double>(v), static_cast<double>(value),
              outliers.size());
  fs::remove(path);
  return std::abs(key - k) < 0.75f && std::abs(value - v) < 0.75f ? 0 : 1;
}
