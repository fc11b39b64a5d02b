#pragma once
/// \file
/// The words of one set of instructions as functions from memory to memory, which code for any machine can call.

#include <cstdint>

#include "kvquant/core/half.hpp"
#include "kvquant/quantize/outlier.hpp"

namespace kvquant::test {

/// Integers of 32 bits go in and out as floats. [16] floats, [32] shorts, [64] bytes where nothing else is said.
struct words_on_memory {
  int probability_bits;
  void (*load_halves)(half const* x, float* out);
  void (*load_residuals)(outlier const* x, float* out);
  void (*calculate)(float const* a, float const* b, float const* c, float (*out)[16]);  ///< + - * fma fms max
  void (*round)(float const* x, float* rounded, float* as_ints);
  void (*scale_by_power)(float const* x, float const* n, float* out);
  float (*sum)(float const* x);
  float (*largest)(float const* x);
  void (*separate)(float const* x, float* even, float* odd);
  void (*sum_each)(float const (*parts)[16], float* out);
  void (*store_transposed)(float const (*x)[16], float* out);
  void (*parts)(float const* x, std::uint8_t* high, std::uint8_t* low);
  void (*join_parts)(float const* high, float const* low, float* out);
  void (*store_low)(float const* x, std::int16_t* out);
  void (*pair_low)(float const* low, float const* high, std::int16_t* out);  ///< [16, 2]
  void (*store_low_pairs)(float const* a, float const* b, std::int8_t* out);
  void (*multiply_pairs)(std::uint8_t const* a, std::int8_t const* b, std::int16_t const* plus, std::int16_t* out);
  void (*dot_shorts)(float const* sum, std::int16_t const* a, std::int32_t two, float* out);
  void (*dot_bytes)(float const* sum, std::int32_t four, std::int8_t const* b, float* out);
  /// [4, 2] and [2]; the first pair alone, then all four.
  void (*dot_each)(std::int16_t const* pairs, std::int16_t const* by, float* first, float* each);
  /// How many of the boundaries lie below, and the last of `others` whose boundary does; [16] each.
  void (*search)(float const* x, float const (*boundaries)[16], float const (*others)[16], int count, float* above,
                 float* chosen);
  void (*repeat_eight)(std::uint8_t const* eight, std::uint8_t* out);
  void (*unpack[4])(std::uint8_t const* packed, std::uint8_t const* table, std::uint8_t (*out)[64]);  ///< 1 to 4 bits
};

}  // namespace kvquant::test
