#pragma once
/// \file
/// The tensor types of GGUF that this runtime reads, and how each becomes float.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace kvquant::runtime {

/// Values are GGUF's own type numbers.
enum class tensor_type : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  bf16 = 30,
};

struct tensor_type_traits {
  tensor_type type;
  std::string_view name;  ///< as people write it: "Q4_1"
  std::size_t block;      ///< elements in a block
  std::size_t block_bytes;
};

/// None for a type that this runtime does not read.
std::optional<tensor_type_traits> find_tensor_type(std::uint32_t gguf_number) noexcept;
/// Throws `bad_format` for a value that is none of the enumerators.
tensor_type_traits const& traits(tensor_type type);

/// The name of any GGUF type number, also of those not readable here, for error texts ("IQ2_XXS"); "type 99" otherwise.
std::string tensor_type_name(std::uint32_t gguf_number);

/// Decodes whole blocks of any alignment: `out.size()` is a multiple of the type's block and `blocks` holds exactly
/// that many, else `bad_shape`. Values are those of ggml's block formats, computed in binary32 without fused
/// operations.
void dequantize(tensor_type type, std::span<std::byte const> blocks, std::span<float> out);

}  // namespace kvquant::runtime
