#pragma once
/// \file
/// What a side makes of tokens: each replaced by what its codes and its outliers read as.

#include <cstddef>
#include <span>
#include <vector>

#include "kvquant/core/half.hpp"
#include "kvquant/quantize/affine.hpp"
#include "kvquant/quantize/outlier.hpp"

namespace kvquant {

/// `Side`: a `channel_side` or a `token_side`, which must outlive it. Holds scratch: one object per thread.
template <class Side>
class token_rounder {
 public:
  /// Of a side's channels.
  explicit token_rounder(Side const& side) : side_(side), selector_(side.make_selector()), codes_(side.channels()) {}

  /// Replaces `token` [channels], and returns how many outliers it has. Throws as the side's `quantize` does; then the
  /// token is as it was.
  std::size_t operator()(std::span<float> token) {
    outliers_.clear();
    affine const map =
        affine_of(side_.quantize(token, codes_, selector_, [&](outlier it) { outliers_.push_back(it); }));
    for (std::size_t channel = 0; channel < token.size(); ++channel)
      token[channel] = side_.decode(channel, map, codes_[channel]);
    for (outlier const it : outliers_) token[it.index] += to_float(it.residual);
    return outliers_.size();
  }

 private:
  Side const& side_;
  typename Side::selector_type selector_;
  std::vector<typename Side::code_type> codes_;  // [channels]
  std::vector<outlier> outliers_;
};

}  // namespace kvquant
