/// \file
/// Any bytes are a GGUF file or an error; of a file, everything it hands out can be read.

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvquant/core/error.hpp"
#include "runtime/gguf.hpp"
#include "test/support/gguf_walk.hpp"

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t bytes) {
  try {
    auto const file = kvquant::runtime::gguf_file::parse(std::as_bytes(std::span(data, bytes)), "fuzz");
    volatile std::uint64_t sum = kvquant::test::walk(file);
    static_cast<void>(sum);
  } catch (kvquant::error const&) {
  }
  return 0;
}
