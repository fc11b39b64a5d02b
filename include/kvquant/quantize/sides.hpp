#pragma once
/// \file
/// Who quantizes keys and values.

#include <type_traits>

#include "kvquant/format/format.hpp"
#include "kvquant/quantize/channel_side.hpp"
#include "kvquant/quantize/token_side.hpp"

namespace kvquant {

/// Keys keep their distribution along the context, channel by channel (KVQuant, section 3.1).
template <Format F>
using key_side = channel_side<F>;

/// Values are quantized token by token (KVQuant, section 3.1), unless the format gives each channel codes of its own.
template <Format F>
using value_side = std::conditional_t<is_by_channel<F>, channel_side<F>, token_side<F>>;

}  // namespace kvquant
