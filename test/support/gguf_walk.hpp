#pragma once
/// \file
/// Touches everything that a parsed GGUF file hands out, for tests and fuzzing with sanitizers.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "runtime/gguf.hpp"

namespace kvquant::test {

/// Reads all metadata and the first blocks of every tensor, at most about `elements_each`, and its last block. Returns
/// a sum over all of it, so that no read can be left out.
inline std::uint64_t walk(runtime::gguf_file const& file, std::size_t elements_each = 4096) {
  std::uint64_t sum = 0;
  auto const add = [&](auto const& value) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string_view>) {
      for (char const c : value) sum += static_cast<unsigned char>(c);
    } else {
      sum += value != 0 ? 1 : 0;
    }
  };
  for (auto const& [key, value] : file.metadata()) {
    add(key);
    std::visit(
        [&]<class T>(T const& v) {
          if constexpr (std::is_same_v<T, runtime::gguf_array>) {
            std::visit([&](auto const& elements) { std::ranges::for_each(elements, add); }, v);
          } else {
            add(v);
          }
        },
        value);
  }
  for (auto const& tensor : file.tensors()) {
    add(tensor.name);
    auto const& t = runtime::traits(tensor.type);
    std::size_t const blocks = std::min(tensor.elements() / t.block, std::max<std::size_t>(elements_each / t.block, 1));
    std::vector<float> out(blocks * t.block);
    runtime::dequantize(tensor.type, tensor.data.first(blocks * t.block_bytes), out);
    std::ranges::for_each(out, add);
    runtime::dequantize(tensor.type, tensor.data.last(t.block_bytes), std::span(out).first(t.block));
    std::ranges::for_each(out, add);
  }
  return sum;
}

}  // namespace kvquant::test
