#pragma once
/// \file
/// Keys: one static range per channel, found by calibration (KVQuant, sections 3.1 and 3.4).

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/format/format.hpp"
#include "kvquant/quantize/affine.hpp"
#include "kvquant/quantize/outlier.hpp"

namespace kvquant {

/// Quantizes key channels to `x̂ = scale_c · level[code] + zero_c`; formats that are not `scaled` take them as they are.
template <Format F>
class key_side {
 public:
  using format = F;
  using code_type = typename F::code_type;

  /// `ranges`: [channels], beyond which a value is an outlier if `keep_outliers`.
  key_side(std::span<value_range const> ranges, typename F::table const& table, bool keep_outliers)
      : table_(table), keep_outliers_(F::scaled && keep_outliers) {
    require(!ranges.empty() && ranges.size() <= 0x10000, errc::bad_shape, "keys: ", ranges.size(),
            " channels, expected 1 to 65536");
    channels_.reserve(ranges.size());
    for (value_range const range : ranges) {
      require(range.low() <= range.high(), errc::bad_value, "keys: channel ", channels_.size(), " has the range [",
              range.low(), ", ", range.high(), "], expected lower <= upper");
      channels_.push_back({F::scaled ? affine_of(range) : affine{}, range.low(), range.high()});
    }
  }

  std::size_t channels() const { return channels_.size(); }
  typename F::table const& table() const { return table_; }
  std::size_t bytes() const { return sizeof(*this) + channels_.size() * sizeof(channel_range); }
  affine map(std::size_t channel) const { return channels_[channel].map; }

  code_type encode(std::size_t channel, float x) const { return F::encode(table_, map(channel).normalise(x)); }
  float decode(std::size_t channel, code_type code) const { return map(channel).restore(F::decode(table_, code)); }
  bool is_outlier(std::size_t channel, float x) const {
    return keep_outliers_ && (x < channels_[channel].low || x > channels_[channel].high);
  }

  /// One token: `codes` [channels]; `sink(outlier)` for each outlier, by rising channel. Throws `bad_shape`, and
  /// `bad_value` naming the channel that is no binary16 number; nothing is written then.
  template <class Sink>
  void quantize(std::span<float const> token, std::span<code_type> codes, Sink&& sink) const {
    require_storable(token, codes.size(), channels(), "keys");
    for (std::size_t channel = 0; channel < channels(); ++channel) {
      float const x = token[channel];
      codes[channel] = encode(channel, x);
      if (is_outlier(channel, x))
        sink(outlier{static_cast<std::uint16_t>(channel), residual_of(x, decode(channel, codes[channel]))});
    }
  }

 private:
  struct channel_range {
    affine map;
    float low, high;
  };
  std::vector<channel_range> channels_;
  typename F::table table_;
  bool keep_outliers_;
};

}  // namespace kvquant
