#pragma once
/// \file
/// A fingerprint for telling files apart and noticing damage; no defence against a forger.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kvquant {

/// FNV-1a, 64 bits: independent of how the bytes are cut into calls.
class fingerprint {
 public:
  ///@{
  /// Continues with these bytes.
  constexpr void add(std::string_view bytes) noexcept {
    for (char const byte : bytes) add_byte(static_cast<unsigned char>(byte));
  }
  constexpr void add(std::span<std::byte const> bytes) noexcept {
    for (std::byte const byte : bytes) add_byte(static_cast<unsigned char>(byte));
  }
  ///@}

  /// Of all bytes so far.
  constexpr std::uint64_t value() const noexcept { return state_; }

  /// 16 lower-case hexadecimal digits.
  std::string hex() const {
    std::string digits(16, '0');
    for (std::size_t i = 0; i < digits.size(); ++i) digits[i] = "0123456789abcdef"[(state_ >> (60 - 4 * i)) & 0xf];
    return digits;
  }

 private:
  constexpr void add_byte(unsigned char byte) noexcept {
    state_ ^= byte;
    state_ *= 0x100000001b3ull;
  }

  std::uint64_t state_ = 0xcbf29ce484222325ull;
};

}  // namespace kvquant
