#pragma once
/// \file
/// Numbers of tokens and bytes as people write them.

#include <cstddef>
#include <string_view>

namespace kvquant::plan {

inline constexpr std::size_t most_tokens = std::size_t{1} << 40;

/// "1000", "128K", "1M": K is 1024 and M 1024², lower case alike, so that 128K is 131072. Throws `bad_value` for
/// anything but 1 to 2^40.
std::size_t parse_tokens(std::string_view text);

/// "2GiB", "512 MiB", "1.5GB", "1000000": KiB, MiB, GiB and TiB are powers of 1024, kB, MB, GB and TB of 1000. Throws
/// `bad_value` for anything but 1 byte to 2^50.
std::size_t parse_bytes(std::string_view text);

}  // namespace kvquant::plan
