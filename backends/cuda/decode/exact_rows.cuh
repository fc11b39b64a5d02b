#pragma once
/// \file
/// Tokens that are stored as they came: a sequence's first and latest ones.

#include <cstddef>
#include <cstdint>

#include "backends/cuda/arch/instructions.cuh"
#include "backends/cuda/kernel/params.hpp"

namespace kvquant::cuda {

using arch::word;

/// In which order a head's channels are wanted: as they are, or which pair and which channel is at a place.
struct own_places {
  static constexpr bool ordered = false;
};
struct listed_places {
  static constexpr bool ordered = true;
  std::uint8_t const *pair_at, *channel_at;  ///< [head_dim / 2], [head_dim]
};

/// Sixteen tokens that lie row by row, [tokens, row_elements] in binary16 from the head's first channel; rows from
/// `tokens` on read as zeros.
template <int HeadDim, class Places>
class exact_rows {
 public:
  __device__ __forceinline__ exact_rows(model_tables const& model, Places const& places, std::uint16_t const* k,
                                        std::uint16_t const* v, std::size_t row_elements, int tokens)
      : split_pairs_(model.half_split ? model.turned_pairs : 0),
        places_(places),
        k_(k),
        v_(v),
        row_(row_elements),
        tokens_(tokens) {}

  /// Pairs 8 · fragment + 2t, + 1 of rows g and g + 8: firsts, then seconds.
  __device__ __forceinline__ void keys(int fragment, word (&out)[4]) const {
    int const place = 8 * fragment + 2 * static_cast<int>(threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int const token = g() + 8 * i;
      if constexpr (Places::ordered) {
        int const a = places_.pair_at[place], b = places_.pair_at[place + 1];
        out[i] = both(k_, token, member(a, 0), member(b, 0));
        out[i + 2] = both(k_, token, member(a, 1), member(b, 1));
      } else {  // whose firsts and seconds lie apart is an even number of pairs, so that two neighbours do alike
        bool const split = place < split_pairs_;
        word const a = neighbours(k_, token, split ? place : 2 * place);
        word const b = neighbours(k_, token, split ? place + split_pairs_ : 2 * place + 2);
        out[i] = split ? a : __byte_perm(a, b, 0x5410);
        out[i + 2] = split ? b : __byte_perm(a, b, 0x7632);
      }
    }
  }
  /// Channels 16 · fragment + g, + 8 of tokens 2t, + 1, then 2t + 8, + 9.
  __device__ __forceinline__ void values(int fragment, word (&out)[4]) const {
    int const first = 16 * fragment + 2 * static_cast<int>(threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int const token = g() + i / 2 * 8, place = first + i % 2 * 8;
      if constexpr (Places::ordered)
        out[i] = arch::transposed(both(v_, token, places_.channel_at[place], places_.channel_at[place + 1]));
      else
        out[i] = arch::transposed(neighbours(v_, token, place));
    }
  }

 private:
  static __device__ __forceinline__ int g() { return static_cast<int>(threadIdx.x) % warp_lanes / 4; }
  __device__ __forceinline__ int member(int pair, int second) const {
    return pair < split_pairs_ ? pair + second * split_pairs_ : 2 * pair + second;
  }
  __device__ __forceinline__ std::size_t at(int token, int channel) const {
    return static_cast<std::size_t>(token) * row_ + static_cast<std::size_t>(channel);
  }
  /// Two channels of a token, the first even.
  __device__ __forceinline__ word neighbours(std::uint16_t const* x, int token, int channel) const {
    return token < tokens_ ? *reinterpret_cast<word const*>(x + at(token, channel)) : 0;
  }
  __device__ __forceinline__ word both(std::uint16_t const* x, int token, int a, int b) const {
    return token < tokens_ ? x[at(token, a)] | word{x[at(token, b)]} << 16 : 0;
  }

  int split_pairs_;
  Places places_;
  std::uint16_t const *k_, *v_;
  std::size_t row_;
  int tokens_;
};

}  // namespace kvquant::cuda
