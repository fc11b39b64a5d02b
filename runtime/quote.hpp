#pragma once
/// \file
/// Untrusted names in error texts.

#include <cstddef>
#include <string>
#include <string_view>

namespace kvquant::runtime {

/// `name` between quotes, on one line and printable whatever its bytes: the others as \\xNN, and cut after 80 bytes.
inline std::string quote(std::string_view name) {
  constexpr std::size_t longest = 80;
  constexpr std::string_view hex_digits = "0123456789ABCDEF";
  std::string out = "\"";
  for (char const c : name.substr(0, longest)) {
    auto const byte = static_cast<unsigned char>(c);
    if (c >= ' ' && c <= '~')
      out += c;
    else
      out.append("\\x").append(1, hex_digits[byte >> 4]).append(1, hex_digits[byte & 15]);
  }
  return out + (name.size() > longest ? "…\"" : "\"");
}

}  // namespace kvquant::runtime
