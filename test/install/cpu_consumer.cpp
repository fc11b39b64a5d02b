// A program that knows the CPU backend and its compiled kernels only as an installed package.
#include <array>
#include <cstdio>
#include <vector>

#include "backends/cpu/backend.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/calibrate/calibrator.hpp"
#include "kvquant/calibrate/fit.hpp"

using spec = kvquant::spec<kvquant::nuq<3>, kvquant::nuq<3>>;
using backend = kvquant::cpu::backend;

int main() {
  constexpr std::size_t tokens = 200, channels = 64;
  std::vector<float> x(tokens * channels), out(channels);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) / 17;
  kvquant::view2d<float const> const rows(x.data(), tokens, channels);
  kvquant::model_shape const shape{.layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 64};
  kvquant::calibrator statistics({.layers = 1, .kv_channels = channels, .max_tokens = tokens});
  statistics.observe_range(0, rows);
  statistics.freeze_ranges();
  statistics.observe(0, rows, rows);
  auto const artifact = kvquant::fit<spec>(statistics, {.shape = shape, .weights = kvquant::fit_weights::activation});
  kvquant::kv_cache<spec, backend::page_layout<spec>> cache(artifact, {.max_tokens = tokens});
  kvquant::sequence text = cache.open();
  cache.append(text, 0, rows, rows);
  std::array<kvquant::attend_args, 1> const batch = {
      {{cache.view(text, 0), rows.middle_rows(tokens - 1, 1), {out.data(), 1, channels}}}};
  kvquant::inline_executor here;
  backend::attention<spec>{artifact}(0, batch, here);
  // Over many tokens the values' mean, 8 / 17, and a little of what the keys prefer.
  std::printf("%s %.3f\n", KVQUANT_VERSION, static_cast<double>(out[0]));
  return out[0] > 0.3f && out[0] < 0.7f ? 0 : 1;
}
