/// \file
/// Quantizes keys of one layer to 3 bits with 1 % of the values kept sparse, packs the codes, and reads all of it back.

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kvquant/kvquant.hpp"

namespace {

constexpr std::size_t tokens = 1024, channels = 128;
using datatype = kvquant::normal_float<3>;

/// Keys before RoPE: every channel has a centre and a spread of its own.
std::vector<float> make_keys() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> centre(channels), spread(channels), keys(tokens * channels);
  for (std::size_t c = 0; c < channels; ++c) {
    centre[c] = 3 * normal(random);
    spread[c] = 0.2f + std::abs(normal(random));
  }
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = centre[i % channels] + spread[i % channels] * normal(random);
  return keys;
}

/// Per channel, the 0.5 % and 99.5 % quantiles: what lies beyond is kept sparse.
std::vector<kvquant::value_range> find_ranges(kvquant::view2d<float const> keys, double outlier_fraction) {
  std::vector<kvquant::value_range> ranges;
  for (std::size_t channel = 0; channel < keys.cols; ++channel) {
    kvquant::tail_sketch tails(kvquant::tail_sketch::capacity_for(outlier_fraction, keys.rows));
    for (std::size_t token = 0; token < keys.rows; ++token) tails.add(keys(token, channel));
    auto const [lower, upper] = tails.quantiles(outlier_fraction / 2);
    ranges.push_back(kvquant::make_range(lower, upper));
  }
  return ranges;
}

}  // namespace

int main() {
  std::vector<float> const values = make_keys();
  kvquant::view2d<float const> const keys(values.data(), tokens, channels);
  kvquant::key_side<datatype> const side(find_ranges(keys, 0.01), datatype::default_table(), true);

  std::size_t bytes = 0, outliers = 0;
  double squared_error = 0, squares = 0;
  std::vector<std::uint8_t> codes(channels), decoded(channels);
  std::vector<std::byte> packed(kvquant::packed_bytes<datatype::bits>(channels));
  std::vector<kvquant::outlier> sparse;
  for (std::size_t token = 0; token < tokens; ++token) {
    sparse.clear();
    // [doc:quantize]
    side.quantize(keys.row(token), codes, [&](kvquant::outlier it) { sparse.push_back(it); });
    kvquant::pack<datatype::bits>(codes, packed);
    bytes += packed.size() + sparse.size() * sizeof(kvquant::outlier);
    outliers += sparse.size();

    kvquant::unpack<datatype::bits>(packed, decoded);
    std::vector<float> restored(channels);
    for (std::size_t channel = 0; channel < channels; ++channel)
      restored[channel] = side.decode(channel, decoded[channel]);
    for (kvquant::outlier const it : sparse) restored[it.index] += kvquant::to_float(it.residual);
    // [/doc]
    for (std::size_t channel = 0; channel < channels; ++channel) {
      squared_error += std::pow(restored[channel] - keys(token, channel), 2);
      squares += std::pow(keys(token, channel), 2);
    }
  }
  double const relative = std::sqrt(squared_error / squares);
  std::printf("%.2f bits per value, %zu of %zu values sparse, relative error %.3f\n",
              8 * static_cast<double>(bytes) / static_cast<double>(values.size()), outliers, values.size(), relative);
  return relative < 0.1 ? 0 : 1;
}
