#include "kvquant/cache/bytes.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "test/support/column_major_layout.hpp"
#include "test/support/counting_resource.hpp"
#include "test/support/small_cache.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using S = spec<nuq<3>, nuq<3>>;

/// Two bytes for each of 32 keys and 32 values.
constexpr std::size_t exact_token = 128;

/// A sequence of one layer with 8 KV heads of 128 channels. What its pages hold does not matter.
template <int Bits>
byte_report long_sequence_bytes(std::size_t tokens) {
  using long_spec = spec<nuq<Bits>, nuq<Bits>>;
  artifact_choice const choice{.shape = {.layers = 1, .q_heads = 8, .kv_heads = 8, .head_dim = 128, .rope = {}},
                               .fraction_k = 0.01,
                               .fraction_v = 0.01};
  auto const it = artifact_for<long_spec>(token_stream(choice.shape, 4), choice);
  row_major_cache<long_spec> cache(it, {.max_tokens = tokens});
  sequence const of = cache.assemble(
      tokens, (tokens - 1) / page_tokens * page_tokens, [](auto&&...) {}, [](auto&&...) {});
  CHECK(cache.elements(of) == 2 * tokens * 1024);
  return cache.bytes(of);
}

}  // namespace

TEMPLATE_TEST_CASE_SIG("32768 tokens of 1024 channels take at most half a bit more than their codes", "[cache]",
                       ((int Bits), Bits), 4, 3, 2) {
  auto const bytes = long_sequence_bytes<Bits>(32768);
  std::size_t const elements = 2 * 32768 * 1024, in_pages = 2 * 511 * 64 * 1024;
  CHECK(8 * bytes.codes == Bits * in_pages);
  CHECK(bytes.value_ranges == std::size_t{511} * 8 * 64 * 4);
  CHECK(bytes.slots >= in_pages / 100 * sizeof(outlier));
  CHECK(bytes.bits_per_element(elements) <= Bits + 0.5);
  CHECK(bytes.bits_per_element(elements) > Bits + 0.4);  // nothing was left out
}

TEST_CASE("without quantization a page takes 16 bits an element, and no more", "[cache]") {
  using exact = spec<passthrough, passthrough>;
  row_major_cache<exact> cache(make_passthrough_artifact(artifact_choice{}.shape), {.max_tokens = 256});
  sequence const it = sequence_of(cache, small_stream(), 3 * 64);
  auto const bytes = cache.bytes(it);
  CHECK(bytes.codes == 2 * 3 * 64 * exact_token);
  CHECK(bytes.codes == bytes.total() - bytes.tables - bytes.page_table - bytes.slack);
  CHECK(byte_report{.codes = bytes.codes}.bits_per_element(cache.elements(it)) == 16.0);
}

TEST_CASE("the parts of a sequence by hand", "[cache]") {
  small_cache cache(6);
  auto const& geometry = cache.geometry();
  sequence it = sequence_of(cache, small_stream(), 5 + 2 * 64 + 10);
  cache.reserve(it, 54);
  auto const bytes = cache.bytes(it);
  std::size_t const pages = 2 * 2 * 2;
  CHECK(bytes.codes == pages * 2 * 384);
  CHECK(bytes.value_ranges == pages * 256);
  CHECK(bytes.slots == pages * geometry.slot_bytes());
  CHECK(bytes.padding == 0);
  CHECK(bytes.sinks == 2 * 5 * exact_token);
  CHECK(bytes.tail == 2 * 10 * exact_token);
  CHECK(bytes.slack == 2 * 54 * exact_token + 4 * geometry.page_bytes());
  CHECK(bytes.page_table >= 2 * 3 * sizeof(page_id));
  CHECK(bytes.tables > 2 * 32 * (sizeof(affine) + 2 * sizeof(float)));
  CHECK(cache.elements(it) == 2 * 143 * 2 * 32);
}

TEST_CASE("a cache's own bytes are its pages', in use and free, and its tables'", "[cache]") {
  small_cache cache(6);
  std::size_t const page = cache.geometry().page_bytes();
  auto const empty = cache.bytes();
  CHECK(empty.slack == 6 * 2 * 2 * page);
  CHECK(empty.codes + empty.value_ranges + empty.slots + empty.padding + empty.sinks + empty.tail == 0);
  sequence const it = sequence_of(cache, small_stream(), 5 + 2 * 64 + 10), copy = cache.fork(it);
  auto const bytes = cache.bytes(), own = cache.bytes(it);
  CHECK(bytes.codes == own.codes);  // shared pages are counted once
  CHECK(bytes.value_ranges == own.value_ranges);
  CHECK(bytes.slots == own.slots);
  CHECK(bytes.slack == 4 * 2 * 2 * page);
  CHECK(bytes.total() == empty.total());
}

TEST_CASE("every byte that was allocated for tokens is reported, once", "[cache]") {
  counting_resource memory;
  row_major_cache<S> cache(small_artifact<S>(), {.max_tokens = 256, .sinks = 5, .recent_pages = 1, .memory = &memory});
  std::size_t const tables = cache.bytes().tables;
  CHECK(memory.bytes() == cache.bytes().total() - tables);
  sequence it = cache.open(256);
  for (std::size_t tokens : {0u, 3u, 5u, 100u, 200u, 300u}) {
    append_tokens(cache, it, small_stream(), it.tokens(), tokens - it.tokens());
    auto const own = cache.bytes(it);
    std::size_t const table_of_blocks = cache.view(it, 0).pages.size() * 2 * 2 * sizeof(std::uint32_t);
    std::size_t const in_slab = own.codes + own.value_ranges + own.slots + own.padding + table_of_blocks;
    CHECK(memory.bytes() == cache.bytes().total() - tables + own.total() - tables - in_slab);
  }
}

TEST_CASE("a sequence that has all pages accounts for all memory", "[cache]") {
  counting_resource memory;
  row_major_cache<S> cache(small_artifact<S>(), {.max_tokens = 256, .sinks = 5, .memory = &memory});
  sequence const it = sequence_of(cache, small_stream(), 5 + 256 + 30);
  REQUIRE(cache.free_blocks() == 0);
  auto const bytes = cache.bytes(it);
  CHECK(memory.bytes() == bytes.total() - bytes.tables);
}

TEST_CASE("what a layout adds to a page is padding", "[cache]") {
  cache_options const options{.max_tokens = 128};
  row_major_cache<S> rows(small_artifact<S>(), options);
  kv_cache<S, column_major_layout<S>> columns(small_artifact<S>(), options);
  auto const a = rows.bytes(sequence_of(rows, small_stream(), 129));
  auto const b = columns.bytes(sequence_of(columns, small_stream(), 129));
  CHECK(b.padding == a.padding + 8 * page_alignment);
  CHECK(b.total() == a.total() + 8 * page_alignment);
}

TEST_CASE("a report is the sum of its parts", "[cache]") {
  byte_report const parts{.codes = 1,
                          .value_ranges = 2,
                          .slots = 4,
                          .padding = 8,
                          .sinks = 16,
                          .tail = 32,
                          .tables = 64,
                          .page_table = 128,
                          .slack = 256};
  CHECK(parts.total() == 511);
  byte_report twice = parts;
  twice += parts;
  CHECK(twice.total() == 1022);
  CHECK(twice.padding == 16);
  CHECK(parts.bits_per_element(1022) == 4.0);
  CHECK(parts.bits_per_element(0) == 0.0);
}
