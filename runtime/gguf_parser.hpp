#pragma once
/// \file
/// The grammar of GGUF, apart from the file and its look-ups.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/gguf.hpp"

namespace kvquant::runtime {

/// Strings and data point into the bytes that were parsed.
struct gguf_content {
  std::uint32_t version = 0;
  std::map<std::string_view, gguf_value> metadata;
  std::vector<gguf_tensor> tensors;  ///< in file order
};

/// Allocates at most a small multiple of `bytes.size()`. Throws as `gguf_file::open` does.
gguf_content parse_gguf(std::span<std::byte const> bytes, std::string_view origin);

}  // namespace kvquant::runtime
