#pragma once
/// \file
/// Builds GGUF files for tests: well-formed ones from metadata and tensors, broken ones by changing the public records
/// before `bytes()`.

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvquant/core/half.hpp"
#include "runtime/tensor_type.hpp"

namespace kvquant::test {

/// GGUF's own numbers of metadata types.
enum class gguf_type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

template <class T>
constexpr gguf_type gguf_type_of() {
  if constexpr (std::is_same_v<T, bool>)
    return gguf_type::boolean;
  else if constexpr (std::is_same_v<T, float>)
    return gguf_type::f32;
  else if constexpr (std::is_same_v<T, double>)
    return gguf_type::f64;
  else if constexpr (std::is_convertible_v<T, std::string_view>)
    return gguf_type::string;
  else {
    static_assert(std::is_integral_v<T>);
    constexpr std::array unsigned_types{gguf_type::u8, gguf_type::u16, gguf_type::u32, gguf_type::u64};
    constexpr std::array signed_types{gguf_type::i8, gguf_type::i16, gguf_type::i32, gguf_type::i64};
    constexpr std::size_t width = std::countr_zero(sizeof(T));
    return std::is_signed_v<T> ? signed_types[width] : unsigned_types[width];
  }
}

/// Little-endian bytes, as GGUF wants them.
class byte_sink {
 public:
  template <class T>
  requires std::is_arithmetic_v<T> byte_sink& put(T value) {
    static_assert(std::endian::native == std::endian::little);
    auto const raw = std::bit_cast<std::array<std::byte, sizeof(T)>>(value);
    return put(std::span<std::byte const>(raw));
  }
  byte_sink& put(gguf_type type) { return put(static_cast<std::uint32_t>(type)); }
  byte_sink& put(half value) { return put(value.bits); }
  byte_sink& put(std::string_view value) {
    put(std::uint64_t{value.size()});
    return put(std::as_bytes(std::span(value)));
  }
  byte_sink& put(std::span<std::byte const> raw) {
    // One by one: g++ 12 warns of an overflow in the range insert that it inlines.
    for (std::byte const byte : raw) bytes_.push_back(byte);
    return *this;
  }
  byte_sink& pad_to(std::size_t size) {
    bytes_.resize(std::max(size, bytes_.size()));
    return *this;
  }

  std::size_t size() const { return bytes_.size(); }
  std::vector<std::byte> const& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

namespace detail {

/// 32 codes of 4 or 5 bits: the fifth bits first, then code i and code i+16 share byte i.
inline void put_codes(byte_sink& out, std::array<std::uint8_t, 32> const& codes, int bits) {
  if (bits == 5) {
    std::uint32_t high = 0;
    for (std::size_t i = 0; i < 32; ++i) high |= static_cast<std::uint32_t>(codes[i] >> 4) << i;
    out.put(high);
  }
  for (std::size_t i = 0; i < 16; ++i)
    out.put(static_cast<std::uint8_t>((codes[i] & 15) | ((codes[i + 16] & 15) << 4)));
}

inline std::uint8_t nearest_code(float x, float low, float scale, int levels) {
  if (scale == 0) return 0;
  return static_cast<std::uint8_t>(std::clamp(std::nearbyint((x - low) / scale), 0.0f, static_cast<float>(levels - 1)));
}

/// Q4_0 and Q5_0: x ≈ scale · (code − levels/2), scale such that the largest magnitude takes code 0.
inline void put_symmetric(byte_sink& out, std::span<float const> x, int bits) {
  int const levels = 1 << bits;
  float const extreme = *std::ranges::max_element(x, {}, [](float v) { return std::abs(v); });
  half const stored = to_half(extreme / static_cast<float>(-levels / 2));
  float const scale = to_float(stored);
  std::array<std::uint8_t, 32> codes{};
  for (std::size_t i = 0; i < 32; ++i)
    codes[i] = nearest_code(x[i], -scale * static_cast<float>(levels / 2), scale, levels);
  out.put(stored);
  put_codes(out, codes, bits);
}

/// Q4_1 and Q5_1: x ≈ scale · code + minimum.
inline void put_affine(byte_sink& out, std::span<float const> x, int bits) {
  int const levels = 1 << bits;
  auto const [low, high] = std::ranges::minmax(x);
  half const stored_scale = to_half((high - low) / static_cast<float>(levels - 1));
  half const stored_minimum = to_half(low);
  std::array<std::uint8_t, 32> codes{};
  for (std::size_t i = 0; i < 32; ++i)
    codes[i] = nearest_code(x[i], to_float(stored_minimum), to_float(stored_scale), levels);
  out.put(stored_scale).put(stored_minimum);
  put_codes(out, codes, bits);
}

inline void put_q8_0(byte_sink& out, std::span<float const> x) {
  float const extreme = std::abs(*std::ranges::max_element(x, {}, [](float v) { return std::abs(v); }));
  half const stored = to_half(extreme / 127);
  float const scale = to_float(stored);
  out.put(stored);
  for (float const v : x)
    out.put(static_cast<std::int8_t>(scale == 0 ? 0 : std::clamp(std::nearbyint(v / scale), -127.0f, 127.0f)));
}

inline std::uint16_t bf16_bits(float x) {
  auto const wide = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
}

}  // namespace detail

/// `x` in the blocks of `type`: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 or Q5_1.
inline std::vector<std::byte> quantize_blocks(runtime::tensor_type type, std::span<float const> x) {
  using enum runtime::tensor_type;
  std::size_t const block = runtime::traits(type).block;
  if (x.size() % block != 0) throw std::logic_error("not whole blocks");
  byte_sink out;
  for (std::size_t i = 0; i < x.size(); i += block) {
    auto const part = x.subspan(i, block);
    switch (type) {
      case f32: out.put(part[0]); break;
      case f16: out.put(to_half(part[0])); break;
      case bf16: out.put(detail::bf16_bits(part[0])); break;
      case q8_0: detail::put_q8_0(out, part); break;
      case q4_0: detail::put_symmetric(out, part, 4); break;
      case q5_0: detail::put_symmetric(out, part, 5); break;
      case q4_1: detail::put_affine(out, part, 4); break;
      case q5_1: detail::put_affine(out, part, 5); break;
      default: throw std::logic_error("no quantizer for this type: use random_blocks");
    }
  }
  return out.bytes();
}

/// Finite values of every type; `scale` is about their standard deviation.
inline std::vector<std::byte> random_blocks(runtime::tensor_type type, std::size_t elements, std::mt19937& random,
                                            float scale = 1) {
  using enum runtime::tensor_type;
  auto const& t = runtime::traits(type);
  if (type != q4_k && type != q5_k && type != q6_k) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> x(elements);
    std::ranges::generate(x, [&] { return normal(random); });
    return quantize_blocks(type, x);
  }
  // K blocks are uniform bytes but for their binary16 scales, which are set so that the largest value is ≈ 3 · scale.
  std::vector<std::byte> out(elements / t.block * t.block_bytes);
  std::ranges::generate(out, [&] { return static_cast<std::byte>(random() & 0xff); });
  int const levels = type == q4_k ? 16 : 32;
  half const d = to_half(type == q6_k ? 3 * scale / (128 * 32) : 6 * scale / static_cast<float>(63 * levels));
  half const minimum = to_half(3 * scale / 63);
  for (std::size_t at = 0; at < out.size(); at += t.block_bytes) {
    if (type == q6_k) {
      std::memcpy(out.data() + at + t.block_bytes - sizeof d, &d, sizeof d);
    } else {
      std::memcpy(out.data() + at, &d, sizeof d);
      std::memcpy(out.data() + at + sizeof d, &minimum, sizeof minimum);
    }
  }
  return out;
}

/// Metadata and tensors keep the order of the calls. Everything is public: a test that wants a broken file changes a
/// record, or patches the bytes.
struct gguf_writer {
  struct entry {
    std::string key;
    std::uint32_t type = 0;
    std::vector<std::byte> value;
  };
  struct tensor_record {
    std::string name;
    std::uint32_t type = 0;
    std::vector<std::uint64_t> shape;  ///< shape[0] is contiguous
    std::uint64_t offset = 0;          ///< from the start of the data section
    std::vector<std::byte> data;
  };

  std::uint32_t version = 3;
  /// Where the data section and its tensors start. Other values than 32 need set("general.alignment", …) too.
  std::size_t alignment = 32;
  std::vector<entry> entries;
  std::vector<tensor_record> tensors;

  /// A number, a bool or a string; the C++ type decides GGUF's.
  template <class T>
  requires std::is_arithmetic_v<T> || std::is_convertible_v<T, std::string_view> gguf_writer& set(std::string key,
                                                                                                  T const& value) {
    byte_sink sink;
    put_value(sink, value);
    entries.push_back({std::move(key), static_cast<std::uint32_t>(gguf_type_of<T>()), sink.bytes()});
    return *this;
  }

  /// An array of numbers, bools or strings.
  template <class T>
  gguf_writer& set(std::string key, std::vector<T> const& values) {
    byte_sink sink;
    sink.put(gguf_type_of<T>()).put(std::uint64_t{values.size()});
    for (auto&& value : values) put_value<T>(sink, value);
    entries.push_back({std::move(key), static_cast<std::uint32_t>(gguf_type::array), sink.bytes()});
    return *this;
  }

  gguf_writer& set_raw(std::string key, std::uint32_t type, std::vector<std::byte> value) {
    entries.push_back({std::move(key), type, std::move(value)});
    return *this;
  }

  /// Takes blocks as they are, after the tensors before it.
  gguf_writer& add(std::string name, runtime::tensor_type type, std::vector<std::uint64_t> shape,
                   std::vector<std::byte> blocks) {
    std::uint64_t const end = tensors.empty() ? 0 : tensors.back().offset + tensors.back().data.size();
    tensors.push_back(
        {std::move(name), static_cast<std::uint32_t>(type), std::move(shape), aligned(end), std::move(blocks)});
    return *this;
  }
  gguf_writer& add(std::string name, runtime::tensor_type type, std::vector<std::uint64_t> shape,
                   std::span<float const> values) {
    return add(std::move(name), type, std::move(shape), quantize_blocks(type, values));
  }
  gguf_writer& add_random(std::string name, runtime::tensor_type type, std::vector<std::uint64_t> shape,
                          std::mt19937& random, float scale = 1) {
    auto const elements = std::accumulate(shape.begin(), shape.end(), std::uint64_t{1}, std::multiplies<>{});
    return add(std::move(name), type, std::move(shape), random_blocks(type, elements, random, scale));
  }

  std::vector<std::byte> bytes() const {
    byte_sink sink;
    sink.put(std::as_bytes(std::span("GGUF", 4))).put(version);
    sink.put(std::uint64_t{tensors.size()}).put(std::uint64_t{entries.size()});
    for (entry const& e : entries) sink.put(std::string_view(e.key)).put(e.type).put(std::span(e.value));
    for (tensor_record const& t : tensors) {
      sink.put(std::string_view(t.name)).put(static_cast<std::uint32_t>(t.shape.size()));
      for (std::uint64_t const extent : t.shape) sink.put(extent);
      sink.put(t.type).put(t.offset);
    }
    std::size_t const data_start = aligned(sink.size());
    std::vector<std::byte> out = sink.pad_to(data_start).bytes();
    for (tensor_record const& t : tensors) {
      if (t.data.empty()) continue;
      out.resize(std::max(out.size(), data_start + t.offset + t.data.size()));
      std::ranges::copy(t.data, out.begin() + static_cast<std::ptrdiff_t>(data_start + t.offset));
    }
    return out;
  }

  void write(std::filesystem::path const& path) const {
    auto const content = bytes();
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<char const*>(content.data()), static_cast<std::streamsize>(content.size()));
    if (!out.flush()) throw std::runtime_error("cannot write " + path.string());
  }

 private:
  template <class T>
  static void put_value(byte_sink& sink, T const& value) {
    if constexpr (std::is_same_v<T, bool>)
      sink.put(static_cast<std::uint8_t>(value));
    else if constexpr (std::is_arithmetic_v<T>)
      sink.put(value);
    else
      sink.put(std::string_view(value));
  }

  std::uint64_t aligned(std::uint64_t offset) const { return (offset + alignment - 1) / alignment * alignment; }
};

}  // namespace kvquant::test
