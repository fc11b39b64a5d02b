#include <catch2/catch.hpp>
#include <cstddef>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "kvquant/cache/kv_cache.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

/// A call that runs out of pages and leaves sequence and pool as they were.
template <class Call>
void check_out_of_pages(small_cache const& cache, sequence const& of, Call&& call) {
  auto const before = contents_of(cache, of);
  std::size_t const free = cache.free_blocks();
  CHECK(error_of(call).code == errc::out_of_pages);
  CHECK((contents_of(cache, of) == before));
  CHECK(cache.free_blocks() == free);
}

}  // namespace

TEST_CASE("sealing again needs no page, unless the page is shared", "[cache]") {
  small_cache cache(2);
  sequence it = sequence_of(cache, small_stream(), 5 + 128);
  REQUIRE(cache.free_pages() == 0);
  auto const before = contents_of(cache, it);
  cache.truncate(it, 5 + 100);
  append_tokens(cache, it, small_stream(), 105, 28);
  CHECK((contents_of(cache, it) == before));

  cache.truncate(it, 5 + 100);
  std::optional<sequence> copy = cache.fork(it);
  check_out_of_pages(cache, it, [&] { append_tokens(cache, it, small_stream(), 105, 28); });
  append_tokens(cache, it, small_stream(), 105, 27);  // the page is not full
  check_out_of_pages(cache, it, [&] { append_tokens(cache, it, small_stream(), 132, 1); });
  copy.reset();
  append_tokens(cache, it, small_stream(), 132, 1);
  CHECK((contents_of(cache, it) == before));
}

TEST_CASE("out of pages, a sequence is as it was, and goes on when there are some", "[cache]") {
  small_cache cache(3);
  std::optional<sequence> other = sequence_of(cache, other_stream(), 5 + 64);
  sequence it = sequence_of(cache, small_stream(), 5 + 30);
  check_out_of_pages(cache, it, [&] {  // five pages where there are four blocks
    cache.append(it, 0, small_stream().keys(0, 35, 5 * 64 - 30), small_stream().values(0, 35, 5 * 64 - 30));
  });
  check_out_of_pages(cache, it, [&] { cache.reserve(it, 98 + 64); });
  append_tokens(cache, it, small_stream(), 35, 98 + 63);
  CHECK(cache.free_pages() == 0);
  check_out_of_pages(cache, it, [&] { append_tokens(cache, it, small_stream(), 196, 1); });
  other.reset();
  append_tokens(cache, it, small_stream(), 196, 1);
  small_cache roomy(4);
  CHECK((contents_of(cache, it) == contents_of(roomy, sequence_of(roomy, small_stream(), 197))));
}

TEST_CASE("a layer that runs out after another does not take the other's pages", "[cache]") {
  small_cache cache(1);  // two blocks
  sequence it = cache.open();
  cache.append(it, 0, small_stream().keys(0, 0, 5 + 128), small_stream().values(0, 0, 5 + 128));
  CHECK(cache.free_blocks() == 0);
  check_out_of_pages(cache, it,
                     [&] { cache.append(it, 1, small_stream().keys(1, 0, 69), small_stream().values(1, 0, 69)); });
  cache.append(it, 1, small_stream().keys(1, 0, 68), small_stream().values(1, 0, 68));
  cache.truncate(it, 68);  // as after a step that failed
  CHECK(cache.free_blocks() == 1);
  CHECK(it.tokens(0) == 68);
}

TEST_CASE("reserved pages are kept for the sequence", "[cache]") {
  small_cache cache(4);
  sequence it = sequence_of(cache, small_stream(), 5 + 10), other = cache.open();
  cache.reserve(it, 53);
  CHECK(cache.free_pages() == 4);  // no page gets full
  cache.reserve(it, 54 + 64);
  CHECK(cache.free_pages() == 2);
  cache.reserve(it, 54);  // less than there is
  CHECK(cache.free_pages() == 2);
  CHECK(cache.view(it, 0).pages.empty());
  append_tokens(cache, other, other_stream(), 0, 5 + 128);
  CHECK(cache.free_pages() == 0);
  append_tokens(cache, it, small_stream(), 15, 54 + 64);
  CHECK(cache.view(it, 0).pages.size() == 2);
  check_out_of_pages(cache, it, [&] { cache.reserve(it, 64); });
}

TEST_CASE("a reserve that fails in a later layer gives back what earlier ones took", "[cache]") {
  small_cache cache(2);  // four blocks
  sequence it = cache.open();
  CHECK(error_of([&] { cache.reserve(it, 5 + 3 * 64); }).code == errc::out_of_pages);
  CHECK(cache.free_blocks() == 4);
  cache.reserve(it, 5 + 64);
  CHECK(error_of([&] { cache.reserve(it, 5 + 3 * 64); }).code == errc::out_of_pages);
  CHECK(cache.free_blocks() == 2);  // what was reserved before stays
}

TEST_CASE("no number of tokens is too large to be refused", "[cache]") {
  small_cache cache(4);
  sequence it = sequence_of(cache, small_stream(), 10);
  for (std::size_t const tokens : {~std::size_t{0}, ~std::size_t{0} - 9, std::size_t{1} << 62, std::size_t{1} << 40})
    check_out_of_pages(cache, it, [&] { cache.reserve(it, tokens); });
  auto const ignore = [](auto&&...) {};
  constexpr std::size_t sealed = std::size_t{1} << 62;
  check_out_of_pages(cache, it, [&] { cache.assemble(5 + sealed, sealed, ignore, ignore); });
}

TEST_CASE("prepared tokens find their pages", "[cache]") {
  small_cache cache(2);
  sequence it = cache.open(), other = cache.open();
  for (int layer = 0; layer < 2; ++layer)
    cache.prepare(it, layer, small_stream().keys(layer, 0, 69), small_stream().values(layer, 0, 69));
  CHECK(it.tokens() == 0);
  CHECK(cache.free_pages() == 1);
  append_tokens(cache, other, other_stream(), 0, 5 + 64);
  append_tokens(cache, it, small_stream(), 0, 69);
  CHECK(cache.view(it, 0).pages.size() == 1);
}

TEST_CASE("a cut gives reserved pages back, and a fork does not get them", "[cache]") {
  small_cache cache(4);
  sequence it = sequence_of(cache, small_stream(), 5 + 64);
  cache.reserve(it, 128);
  CHECK(cache.free_pages() == 1);
  sequence const copy = cache.fork(it);
  CHECK(cache.free_pages() == 1);
  cache.truncate(it, it.tokens());
  CHECK(cache.free_pages() == 3);
}

TEST_CASE("dropping the middle moves the tokens behind it to the front, bit for bit", "[cache]") {
  small_cache cache(10);
  sequence it = sequence_of(cache, small_stream(), 5 + 4 * 64 + 20);
  auto const before = contents_of(cache, it);
  sequence const copy = cache.fork(it);
  cache.drop(it, 5 + 64, 2 * 64);
  CHECK(it.tokens() == 5 + 2 * 64 + 20);
  CHECK((contents_of(cache, copy) == before));
  auto const after = contents_of(cache, it);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    std::size_t const page = before[layer].pages.size() / 4;
    auto kept = before[layer].pages;
    kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(page), kept.begin() + static_cast<std::ptrdiff_t>(3 * page));
    CHECK((after[layer].pages == kept));
    CHECK((after[layer].exact == before[layer].exact));
  }
  append_tokens(cache, it, small_stream(), 0, 44);
  CHECK(cache.view(it, 1).sealed == 3 * 64);
}

TEST_CASE("dropped pages are free, and reserved ones stay", "[cache]") {
  small_cache cache(6);
  sequence it = sequence_of(cache, small_stream(), 5 + 3 * 64);
  cache.reserve(it, 64);
  CHECK(cache.free_pages() == 2);
  cache.drop(it, 5, 3 * 64);
  CHECK(cache.free_pages() == 5);
  CHECK(it.tokens() == 5);
  append_tokens(cache, it, small_stream(), 5, 64);
  CHECK(cache.free_pages() == 5);
}

TEST_CASE("only whole sealed pages can be dropped", "[cache]") {
  small_cache cache(6);
  sequence it = sequence_of(cache, small_stream(), 5 + 2 * 64 + 20);
  auto const before = contents_of(cache, it);
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
  for (auto const& [first, count] : std::vector<std::pair<std::size_t, std::size_t>>{{0, 64},
                                                                                     {4, 64},
                                                                                     {6, 64},
                                                                                     {5, 1},
                                                                                     {5, 63},
                                                                                     {5, 3 * 64},
                                                                                     {5 + 64, 2 * 64},
                                                                                     {5 + 3 * 64, 0},
                                                                                     {5, most - 63},
                                                                                     {most - 58, 64}}) {
    CAPTURE(first, count);
    CHECK(error_of([&, first = first, count = count] { cache.drop(it, first, count); }).code == errc::bad_value);
    CHECK((contents_of(cache, it) == before));
  }
  cache.drop(it, 5 + 2 * 64, 0);
  CHECK((contents_of(cache, it) == before));
  cache.truncate(it, 5 + 100);  // the second page is read in part
  CHECK(error_of([&] { cache.drop(it, 5 + 64, 64); }).code == errc::bad_value);
  cache.drop(it, 5, 64);
  CHECK(it.tokens() == 5 + 36);
  cache.append(it, 1, small_stream().keys(1, 0, 3), small_stream().values(1, 0, 3));
  CHECK_THAT(error_of([&] { cache.drop(it, 5, 0); }).text, says("41 and 44 tokens"));
}
