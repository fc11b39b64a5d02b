#pragma once
/// \file
/// One range per token over all KV heads, found when the token arrives, outliers by rank: values (KVQuant, section
/// 3.4).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/format/format.hpp"
#include "kvquant/quantize/affine.hpp"
#include "kvquant/quantize/outlier.hpp"

namespace kvquant {

/// Splits tokens into a dense middle and `per_side` outliers at each end. Ranks, not quantiles: every token has the
/// same number of outliers, whatever its ties. Holds scratch: one object per thread.
class rank_selector {
 public:
  /// `outlier_fraction` of a token's channels, half at each end. Throws `bad_shape` or `bad_value`.
  rank_selector(std::size_t channels, double outlier_fraction)
      : per_side_(outliers_per_side(outlier_fraction, channels)), order_(channels) {
    require(channels > 0 && channels <= 0x10000, errc::bad_shape, "values: ", channels,
            " channels, expected 1 to 65536");
  }

  /// Of a token.
  std::size_t channels() const { return order_.size(); }

  /// The range of the middle, as stored. Order is by value, then by channel. No value of `token` [channels] is NaN.
  value_range select(std::span<float const> token) {
    require(token.size() == channels(), errc::bad_shape, "values: a token of ", token.size(), " channels, expected ",
            channels());
    std::iota(order_.begin(), order_.end(), std::uint16_t{0});
    auto const before = [token](std::uint16_t a, std::uint16_t b) {
      return token[a] < token[b] || (token[a] == token[b] && a < b);
    };
    auto const first = order_.begin();
    auto const low = first + static_cast<std::ptrdiff_t>(per_side_);
    auto const high = order_.end() - 1 - static_cast<std::ptrdiff_t>(per_side_);
    std::nth_element(first, low, order_.end(), before);
    if (high != low) std::nth_element(low + 1, high, order_.end(), before);
    value_range const range = make_range(token[*low], token[*high]);
    std::sort(first, low);
    std::sort(high + 1, order_.end());
    return range;
  }

  /// Channels set aside by the last `select`, each rising.
  std::span<std::uint16_t const> smallest() const { return std::span(order_).first(per_side_); }
  /// Those at the upper end.
  std::span<std::uint16_t const> largest() const { return std::span(order_).last(per_side_); }

 private:
  std::size_t per_side_;
  std::vector<std::uint16_t> order_;
};

/// Quantizes tokens to `x̂ = scale_t · level[code] + zero_t`; formats that are not `scaled` take them as they are,
/// whatever the map.
template <Format F>
class token_side {
 public:
  /// Its datatype.
  using format = F;
  /// Of one code.
  using code_type = typename F::code_type;

  /// `outlier_fraction` of a token's channels is kept sparse, half at each end.
  token_side(std::size_t channels, typename F::table const& table, double outlier_fraction)
      : table_(table), selector_(channels, F::scaled ? outlier_fraction : 0) {}

  /// Of a token.
  std::size_t channels() const { return selector_.channels(); }
  /// Of all that is read while encoding.
  std::size_t bytes() const { return sizeof(*this) + channels() * sizeof(std::uint16_t); }
  /// For all channels.
  typename F::table const& table() const { return table_; }

  ///@{
  /// One element by its token's map, without its residual.
  code_type encode(affine map, float x) const { return F::encode(table_, F::scaled ? map.normalise(x) : x); }
  float decode(affine map, code_type code) const {
    float const x = F::decode(table_, code);
    return F::scaled ? map.restore(x) : x;
  }
  ///@}

  /// What `channel_side` has: here all channels are alike.
  using selector_type = rank_selector;
  ///@{
  /// As `channel_side` has it, for code that is written for both.
  code_type encode(std::size_t /*channel*/, affine map, float x) const { return encode(map, x); }
  float decode(std::size_t /*channel*/, affine map, code_type code) const { return decode(map, code); }
  typename F::table const& table(std::size_t /*channel*/) const { return table_; }
  affine map(std::size_t /*channel*/, affine map) const { return F::scaled ? map : affine{}; }
  ///@}

  /// One token: `codes` [channels]; `sink(outlier)` for the smallest by rising channel, then the largest. Returns the
  /// token's range, zeros where the format has none. `selector` is a copy of `make_selector()` that no other thread
  /// uses. Throws as `channel_side` does.
  template <class Sink>
  value_range quantize(std::span<float const> token, std::span<code_type> codes, rank_selector& selector,
                       Sink&& sink) const {
    require_storable(token, codes.size(), channels(), "values");
    value_range const range = F::scaled ? selector.select(token) : value_range{};
    affine const map = affine_of(range);
    for (std::size_t channel = 0; channel < token.size(); ++channel) codes[channel] = encode(map, token[channel]);
    for (auto const channels : {selector.smallest(), selector.largest()})
      for (std::uint16_t const channel : channels)
        sink(outlier{channel, residual_of(token[channel], decode(map, codes[channel]))});
    return range;
  }

  /// Scratch of one thread.
  rank_selector make_selector() const { return selector_; }

 private:
  typename F::table table_;
  rank_selector selector_;
};

}  // namespace kvquant
