#include "runtime/tensor_type.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/type_list.hpp"

namespace kvquant::runtime {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF blocks are read as little-endian memory");

// ggml's blocks as they lie in the file. Each names its type, how many elements a block holds, and decodes one block.
// A new type is one such struct and one name in `block_types`.

struct f32_block {
  static constexpr auto type = tensor_type::f32;
  static constexpr std::string_view name = "F32";
  static constexpr std::size_t elements = 1;
  float x;

  void decode(float* out) const { *out = x; }
};
static_assert(sizeof(f32_block) == 4);

struct f16_block {
  static constexpr auto type = tensor_type::f16;
  static constexpr std::string_view name = "F16";
  static constexpr std::size_t elements = 1;
  half x;

  void decode(float* out) const { *out = to_float(x); }
};
static_assert(sizeof(f16_block) == 2);

struct bf16_block {
  static constexpr auto type = tensor_type::bf16;
  static constexpr std::string_view name = "BF16";
  static constexpr std::size_t elements = 1;
  std::uint16_t high;  // half of a binary32

  void decode(float* out) const { *out = std::bit_cast<float>(static_cast<std::uint32_t>(high) << 16); }
};
static_assert(sizeof(bf16_block) == 2);

/// 32 codes of 4 bits: byte i holds element i below and element i + 16 above.
struct codes_of_4 {
  static constexpr int bits = 4;
  std::uint8_t low[16];

  int first(int i) const { return low[i] & 15; }
  int second(int i) const { return low[i] >> 4; }
};

/// The same with a fifth bit: that of element i is bit i of `high`.
struct codes_of_5 {
  static constexpr int bits = 5;
  std::uint8_t high[4];
  std::uint8_t low[16];

  int first(int i) const { return (low[i] & 15) | fifth(i); }
  int second(int i) const { return low[i] >> 4 | fifth(i + 16); }

 private:
  int fifth(int i) const { return (high[i / 8] >> (i % 8) & 1) << 4; }
};

/// Q4_0 and Q5_0: element = scale · (code − half the levels).
template <class Codes>
struct symmetric_block {
  static constexpr auto type = Codes::bits == 4 ? tensor_type::q4_0 : tensor_type::q5_0;
  static constexpr std::string_view name = Codes::bits == 4 ? "Q4_0" : "Q5_0";
  static constexpr std::size_t elements = 32;
  half scale;
  Codes codes;

  void decode(float* out) const {
    constexpr int middle = 1 << (Codes::bits - 1);
    float const d = to_float(scale);
    for (int i = 0; i < 16; ++i) out[i] = d * static_cast<float>(codes.first(i) - middle);
    for (int i = 0; i < 16; ++i) out[i + 16] = d * static_cast<float>(codes.second(i) - middle);
  }
};
static_assert(sizeof(symmetric_block<codes_of_4>) == 18);
static_assert(sizeof(symmetric_block<codes_of_5>) == 22);

/// Q4_1 and Q5_1: element = scale · code + minimum.
template <class Codes>
struct affine_block {
  static constexpr auto type = Codes::bits == 4 ? tensor_type::q4_1 : tensor_type::q5_1;
  static constexpr std::string_view name = Codes::bits == 4 ? "Q4_1" : "Q5_1";
  static constexpr std::size_t elements = 32;
  half scale, minimum;
  Codes codes;

  void decode(float* out) const {
    float const d = to_float(scale), m = to_float(minimum);
    for (int i = 0; i < 16; ++i) out[i] = d * static_cast<float>(codes.first(i)) + m;
    for (int i = 0; i < 16; ++i) out[i + 16] = d * static_cast<float>(codes.second(i)) + m;
  }
};
static_assert(sizeof(affine_block<codes_of_4>) == 20);
static_assert(sizeof(affine_block<codes_of_5>) == 24);

struct q8_0_block {
  static constexpr auto type = tensor_type::q8_0;
  static constexpr std::string_view name = "Q8_0";
  static constexpr std::size_t elements = 32;
  half scale;
  std::int8_t codes[32];

  void decode(float* out) const {
    float const d = to_float(scale);
    for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(codes[i]);
  }
};
static_assert(sizeof(q8_0_block) == 34);

/// Eight 6-bit scales and eight 6-bit minima, of the sub-blocks of 32, in units of the super-block's two numbers. Bytes
/// 0–3 and 4–7 hold the first four of each in their low six bits, bytes 8–11 the low nibbles of the last four (scale
/// below, minimum above), whose top two bits are those left over in bytes 0–7.
struct packed_scales {
  std::uint8_t bytes[12];

  int scale(int j) const { return j < 4 ? bytes[j] & 63 : (bytes[j + 4] & 15) | (bytes[j - 4] >> 6 << 4); }
  int minimum(int j) const { return j < 4 ? bytes[j + 4] & 63 : (bytes[j + 4] >> 4) | (bytes[j] >> 6 << 4); }
};

/// Element = scale · code − minimum, both per sub-block.
struct k_scales {
  struct affine {
    float scale, minimum;
  };
  half scale_unit, minimum_unit;
  packed_scales packed;

  affine operator()(int j) const {
    return {to_float(scale_unit) * static_cast<float>(packed.scale(j)),
            to_float(minimum_unit) * static_cast<float>(packed.minimum(j))};
  }
};

struct q4_k_block {
  static constexpr auto type = tensor_type::q4_k;
  static constexpr std::string_view name = "Q4_K";
  static constexpr std::size_t elements = 256;
  k_scales scales;
  std::uint8_t codes[4][32];  // two sub-blocks share 32 bytes: the even one below, the odd one above

  void decode(float* out) const {
    for (int pair = 0; pair < 4; ++pair, out += 64) {
      auto const even = scales(2 * pair), odd = scales(2 * pair + 1);
      auto const* c = codes[pair];
      for (int i = 0; i < 32; ++i) out[i] = even.scale * static_cast<float>(c[i] & 15) - even.minimum;
      for (int i = 0; i < 32; ++i) out[i + 32] = odd.scale * static_cast<float>(c[i] >> 4) - odd.minimum;
    }
  }
};
static_assert(sizeof(q4_k_block) == 144);

struct q5_k_block {
  static constexpr auto type = tensor_type::q5_k;
  static constexpr std::string_view name = "Q5_K";
  static constexpr std::size_t elements = 256;
  k_scales scales;
  std::uint8_t high[32];      // bit j of byte i is the fifth bit of element i of sub-block j
  std::uint8_t codes[4][32];  // as in Q4_K

  void decode(float* out) const {
    for (int pair = 0; pair < 4; ++pair, out += 64) {
      auto const even = scales(2 * pair), odd = scales(2 * pair + 1);
      auto const* c = codes[pair];
      auto const fifth = [&](int i, int j) { return (high[i] >> j & 1) << 4; };
      for (int i = 0; i < 32; ++i)
        out[i] = even.scale * static_cast<float>((c[i] & 15) | fifth(i, 2 * pair)) - even.minimum;
      for (int i = 0; i < 32; ++i)
        out[i + 32] = odd.scale * static_cast<float>(c[i] >> 4 | fifth(i, 2 * pair + 1)) - odd.minimum;
    }
  }
};
static_assert(sizeof(q5_k_block) == 176);

struct q6_k_block {
  static constexpr auto type = tensor_type::q6_k;
  static constexpr std::string_view name = "Q6_K";
  static constexpr std::size_t elements = 256;
  std::uint8_t low[2][2][32];   // [half][run % 2][element]: four low bits; runs 0 and 1 below, 2 and 3 above
  std::uint8_t high[2][32];     // [half][element]: two high bits of run r at bit 2 r
  std::int8_t scales[2][4][2];  // [half][run][element / 16]
  half scale_unit;

  void decode(float* out) const {
    float const unit = to_float(scale_unit);
    for (int run = 0; run < 8; ++run) {
      int const part = run / 4, r = run % 4;  // a half of the block is four runs of 32 elements
      int const low_shift = r / 2 * 4, high_shift = 2 * r;
      for (std::size_t group = 0; group < 2; ++group, out += 16) {
        float const d = unit * static_cast<float>(scales[part][r][group]);
        auto const* l = low[part][r % 2] + 16 * group;
        auto const* h = high[part] + 16 * group;
        for (int i = 0; i < 16; ++i)
          out[i] = d * static_cast<float>(((l[i] >> low_shift & 15) | (h[i] >> high_shift & 3) << 4) - 32);
      }
    }
  }
};
static_assert(sizeof(q6_k_block) == 210);

using block_types =
    type_list<f32_block, f16_block, bf16_block, q8_0_block, symmetric_block<codes_of_4>, affine_block<codes_of_4>,
              symmetric_block<codes_of_5>, affine_block<codes_of_5>, q4_k_block, q5_k_block, q6_k_block>;

template <class... Blocks>
constexpr auto make_table(type_list<Blocks...>) {
  return std::array{tensor_type_traits{Blocks::type, Blocks::name, Blocks::elements, sizeof(Blocks)}...};
}
constexpr auto readable_types = make_table(block_types{});

tensor_type_traits const* find(tensor_type type) noexcept {
  auto const found = std::ranges::find(readable_types, type, &tensor_type_traits::type);
  return found == readable_types.end() ? nullptr : &*found;
}

template <class Block>
void decode_blocks(std::byte const* in, float* out, std::size_t blocks) {
  for (std::size_t b = 0; b < blocks; ++b) {
    Block block;  // a copy, because the bytes may lie at any alignment
    std::memcpy(&block, in + b * sizeof(Block), sizeof(Block));
    block.decode(out + b * Block::elements);
  }
}

// By GGUF's numbers; the gaps are types that were withdrawn.
constexpr std::array<std::string_view, 42> type_names{
    "F32",   "F16",    "Q4_0",  "Q4_1", "",     "",        "Q5_0",   "Q5_1",    "Q8_0",  "Q8_1",   "Q2_K",
    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
    "IQ2_S", "IQ4_XS", "I8",    "I16",  "I32",  "I64",     "F64",    "IQ1_M",   "BF16",  "",       "",
    "",      "TQ1_0",  "TQ2_0", "",     "",     "",        "MXFP4",  "NVFP4",   "Q1_0"};

}  // namespace

std::optional<tensor_type_traits> find_tensor_type(std::uint32_t gguf_number) noexcept {
  auto const* found = find(static_cast<tensor_type>(gguf_number));
  return found == nullptr ? std::nullopt : std::optional(*found);
}

tensor_type_traits const& traits(tensor_type type) {
  auto const* found = find(type);
  if (found == nullptr)
    throw error{errc::bad_format,
                text("tensor ", tensor_type_name(static_cast<std::uint32_t>(type)), " is not readable")};
  return *found;
}

std::string tensor_type_name(std::uint32_t gguf_number) {
  if (gguf_number < type_names.size() && !type_names[gguf_number].empty()) return std::string(type_names[gguf_number]);
  return text("type ", gguf_number);
}

void dequantize(tensor_type type, std::span<std::byte const> blocks, std::span<float> out) {
  auto const& t = traits(type);
  std::size_t const count = out.size() / t.block;
  if (out.size() % t.block != 0 || blocks.size() % t.block_bytes != 0 || blocks.size() / t.block_bytes != count)
    throw error{errc::bad_shape,
                text("dequantize ", t.name, ": ", blocks.size(), " bytes for ", out.size(),
                     " elements; expected blocks of ", t.block, " elements in ", t.block_bytes, " bytes each")};
  visit_first(
      block_types{}, [&]<class Block>(std::type_identity<Block>) { return Block::type == type; },
      [&]<class Block>(std::type_identity<Block>) { decode_blocks<Block>(blocks.data(), out.data(), count); });
}

}  // namespace kvquant::runtime
