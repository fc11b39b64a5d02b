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
constexpr std::size_t tokens = 512, channels = kv_heads * head_dim;

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
  auto const keys = artifact.keys(0);  // keys.quantize(token, codes, take_outlier), before RoPE
  auto const values =
      artifact.values(0);  // values.quantize(token, codes, selector, take_outlier) -> range of the token
  auto selector = values.make_selector();  // one for each thread
  std::vector<std::uint8_t> codes(keys.channels());
  std::vector<kvquant::outlier> outliers;
  keys.quantize(view(windows[0].k).row(7), codes, [&](kvquant::outlier it) { outliers.push_back(it); });
  float const restored = keys.decode(5, codes[5]);  // of channel 5, its outlier's residual aside
  // [/doc:embed]

  auto const range = values.quantize(view(windows[0].v).row(7), codes, selector, [](kvquant::outlier) {});
  float const x = view(windows[0].k)(7, 5);
  std::printf("%s: key %.3f reads as %.3f; token 7 has %zu outliers among its keys, values from %.2f to %.2f\n",
              artifact.info.spec.c_str(), static_cast<double>(x), static_cast<double>(restored), outliers.size(),
              static_cast<double>(range.low()), static_cast<double>(range.high()));
  fs::remove(path);
  return std::abs(restored - x) < 0.75f ? 0 : 1;
}
