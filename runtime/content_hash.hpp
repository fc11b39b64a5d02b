#pragma once
/// \file
/// XXH3-128, fed piece by piece.

#include <xxhash.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>

namespace kvquant::runtime {

class content_hash {
 public:
  content_hash() : state_(XXH3_createState()) {
    if (!state_ || XXH3_128bits_reset(state_.get()) == XXH_ERROR) throw std::bad_alloc{};
  }

  /// How bytes are cut into calls does not matter.
  void add_bytes(std::span<std::byte const> bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }

  /// Little-endian, so that machines agree.
  void add(std::uint64_t value) {
    std::array<std::byte, 8> bytes;
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(value >> (8 * i));
    add_bytes(bytes);
  }

  /// The length goes first, so that where one text ends and the next begins matters.
  void add(std::string_view text) {
    add(std::uint64_t{text.size()});
    add_bytes(std::as_bytes(std::span(text)));
  }

  /// 32 lower-case hexadecimal digits, most significant first.
  std::string hex() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    std::string digits;
    for (unsigned char const byte : canonical.digest) {
      digits += "0123456789abcdef"[byte >> 4];
      digits += "0123456789abcdef"[byte & 15];
    }
    return digits;
  }

 private:
  struct free_state {
    void operator()(XXH3_state_t* state) const noexcept { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, free_state> state_;
};

}  // namespace kvquant::runtime
