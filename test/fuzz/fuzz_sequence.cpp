/// \file
/// Any bytes are a sequence or an error. A file is tried twice: as it is, and with its prefix and checksum put right,
/// without which no change would get past the checksum. A sequence can be read, appended to and cut.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

#include "kvquant/core/error.hpp"
#include "test/support/sequence_files.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;

[[noreturn]] void fail(char const* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

void check_pages(tiny_cache const& cache, sequence const& of) {
  for (auto const& page : pages_of(cache, of))
    for (auto const* const slots : {&page.k_slots, &page.v_slots})
      for (outlier const it : *slots)
        if (it.index >= cache.geometry().elements() || !std::isfinite(to_float(it.residual)))
          fail("a slot out of range");
}

void read(std::span<std::byte const> content, tiny_cache& cache) {
  std::size_t const free = cache.free_blocks();
  try {
    sequence_file const file(content, "fuzz");
    sequence it = load_sequence(cache, file);
    if (it.tokens() != file.info().tokens) fail("not as many tokens as the file says");
    check_pages(cache, it);
    append_tokens(cache, it, tiny_cache::stream(), 0, 70);  // seals a page, a re-opened one among them
    check_pages(cache, it);
    cache.truncate(it, it.tokens() / 2);
  } catch (error const&) {
  }
  if (cache.free_blocks() != free) fail("pages were kept");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  static tiny_cache whole(8), windowed(8, 70);
  auto const content = std::as_bytes(std::span(data, size));
  for (tiny_cache* const cache : {&whole, &windowed}) {
    if (auto const repaired = with_right_prefix(content)) read(*repaired, *cache);
    read(content, *cache);
  }
  return 0;
}
