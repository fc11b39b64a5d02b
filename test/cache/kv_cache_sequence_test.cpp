#include <algorithm>
#include <catch2/catch.hpp>
#include <cstddef>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/reference/pages.hpp"
#include "test/support/counting_resource.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using S = small_cache::spec_type;
using cache_type = row_major_cache<S>;

/// Keys or values of a range of tokens, as they are read.
template <class Cache>
reference::matrix read_rows(Cache const& cache, sequence const& of, int layer, std::size_t first, std::size_t count) {
  auto const all = reference::read_layer(cache, small_artifact<typename Cache::spec_type>(), of, layer);
  auto const from = static_cast<Eigen::Index>(first), rows = static_cast<Eigen::Index>(count);
  reference::matrix both(rows, all.k.cols() + all.v.cols());
  both << all.k.middleRows(from, rows), all.v.middleRows(from, rows);
  return both;
}

}  // namespace

TEST_CASE("a fork has the same tokens and shares the pages", "[cache]") {
  small_cache cache(8);
  sequence it = sequence_of(cache, small_stream(), 5 + 150);
  std::size_t const free = cache.free_blocks();
  sequence copy = cache.fork(it);
  CHECK(cache.free_blocks() == free);
  CHECK((contents_of(cache, copy) == contents_of(cache, it)));
  for (int layer = 0; layer < 2; ++layer)
    CHECK(std::ranges::equal(cache.view(copy, layer).pages, cache.view(it, layer).pages));

  auto const before = contents_of(cache, it);
  append_tokens(cache, copy, other_stream(), 0, 100);
  CHECK((contents_of(cache, it) == before));
  append_tokens(cache, it, small_stream(), 155, 100);
  CHECK((contents_of(cache, it) == contents_of(cache, sequence_of(cache, small_stream(), 255))));
  CHECK(cache.view(copy, 0).pages[1] == cache.view(it, 0).pages[1]);
  CHECK(cache.view(copy, 0).pages[2] != cache.view(it, 0).pages[2]);
}

TEST_CASE("pages are free when the last sequence that has them is closed", "[cache]") {
  small_cache cache(8);
  std::optional<sequence> first = sequence_of(cache, small_stream(), 5 + 130), second = cache.fork(*first);
  auto const before = contents_of(cache, *second);
  first.reset();
  CHECK(cache.free_pages() == 6);
  CHECK((contents_of(cache, *second) == before));
  second.reset();
  CHECK(cache.free_pages() == 8);
}

TEST_CASE("cut anywhere and appended again, a sequence has the bytes that it had", "[cache]") {
  int const recent = GENERATE(0, 1);
  bool const shared = GENERATE(false, true);
  std::size_t const tokens = GENERATE(as<std::size_t>(), 5 + 128, 5 + 200);
  small_cache cache(12, recent);
  for (std::size_t const cut : std::vector<std::size_t>{0, 1, 4, 5, 5 + 1, 5 + 31, 5 + 63, 5 + 64, 5 + 65, 5 + 90,
                                                        5 + 127, 5 + 128, 5 + 129, 5 + 199, 5 + 200}) {
    CAPTURE(recent, shared, tokens, cut);
    if (cut > tokens) continue;
    sequence it = sequence_of(cache, small_stream(), tokens);
    auto const before = contents_of(cache, it);
    std::optional<sequence> const fork = shared ? std::optional(cache.fork(it)) : std::nullopt;
    cache.truncate(it, cut);
    CHECK(it.tokens() == cut);
    CHECK(cache.view(it, 0).tokens() == cut);
    append_tokens(cache, it, small_stream(), cut, tokens - cut);
    CHECK((contents_of(cache, it) == before));
    if (fork) CHECK((contents_of(cache, *fork) == before));
  }
  CHECK(cache.free_pages() == 12);
}

TEST_CASE("cut many times on the way, a sequence still ends with the same bytes", "[cache]") {
  small_cache cache(10, GENERATE(0, 1));
  sequence it = cache.open();
  for (auto const& [until, back_to] :
       {std::pair{100, 90}, {140, 20}, {30, 28}, {69, 68}, {200, 198}, {199, 3}, {299, 250}}) {
    auto const from = it.tokens(), to = static_cast<std::size_t>(until);
    append_tokens(cache, it, small_stream(), from, to - from);
    cache.truncate(it, static_cast<std::size_t>(back_to));
  }
  append_tokens(cache, it, small_stream(), 250, 50);
  CHECK((contents_of(cache, it) == contents_of(cache, sequence_of(cache, small_stream(), 300))));
}

TEST_CASE("tokens before a cut are read as they were before it", "[cache]") {
  small_cache cache(8);
  for (std::size_t const cut : std::vector<std::size_t>{5 + 1, 5 + 40, 5 + 64, 5 + 100, 5 + 128, 5 + 140}) {
    sequence it = sequence_of(cache, small_stream(), 5 + 150);
    auto const before = read_rows(cache, it, 1, 0, cut);
    cache.truncate(it, cut);
    CHECK(read_rows(cache, it, 1, 0, cut) == before);
    append_tokens(cache, it, other_stream(), 0, 20);
    CHECK(it.tokens() == cut + 20);
  }
}

TEST_CASE("a cut gives the pages behind it back", "[cache]") {
  small_cache cache(5);
  sequence it = sequence_of(cache, small_stream(), 5 + 4 * 64 + 10);
  CHECK(cache.free_pages() == 1);
  cache.truncate(it, 5 + 3 * 64 + 1);
  CHECK(cache.free_pages() == 1);  // the fourth page is read in part
  CHECK(cache.view(it, 0).pages.size() == 4);
  CHECK(cache.view(it, 0).sealed == 3 * 64 + 1);
  cache.truncate(it, 5 + 3 * 64);
  CHECK(cache.free_pages() == 2);
  cache.truncate(it, 3);
  CHECK(cache.free_pages() == 5);
  CHECK(cache.view(it, 0).sink_k.rows == 3);
}

TEST_CASE("a page that is shared is never written to", "[cache]") {
  small_cache cache(4);
  sequence it = sequence_of(cache, small_stream(), 5 + 64), copy = cache.fork(it);
  auto const before = contents_of(cache, copy);
  cache.truncate(it, 5 + 40);
  append_tokens(cache, it, other_stream(), 0, 24);
  CHECK((contents_of(cache, copy) == before));
  CHECK(cache.view(it, 0).pages[0] != cache.view(copy, 0).pages[0]);
  CHECK(cache.free_pages() == 2);

  cache.truncate(it, 5 + 40);  // its own now: sealed in its place
  page_id const own = cache.view(it, 0).pages[0];
  append_tokens(cache, it, other_stream(), 24, 24);
  CHECK(cache.view(it, 0).pages[0] == own);
  CHECK(cache.free_pages() == 2);
}

TEST_CASE("a sequence cannot be cut to more than it has", "[cache]") {
  small_cache cache(2);
  sequence it = sequence_of(cache, small_stream(), 50);
  auto const refused = error_of([&] { cache.truncate(it, 51); });
  CHECK(refused.code == errc::bad_value);
  CHECK_THAT(refused.text, says("to 51 tokens, the sequence has 50"));
  cache.truncate(it, 50);
  CHECK(it.tokens() == 50);
}

TEST_CASE("sequences may outlive their cache", "[cache]") {
  counting_resource memory;
  {
    std::optional<cache_type> cache(std::in_place, small_artifact<S>(),
                                    cache_options{.max_tokens = 512, .memory = &memory});
    sequence const it = sequence_of(*cache, small_stream(), 200);
    std::vector<sequence> more;
    more.push_back(cache->fork(it));
    cache.reset();
    CHECK(it.tokens() == 200);
    CHECK(memory.bytes() > 0);
  }
  CHECK(memory.bytes() == 0);
}

TEST_CASE("a sequence that is moved keeps its tokens, and one that is assigned to gives its pages back", "[cache]") {
  small_cache cache(6);
  sequence first = sequence_of(cache, small_stream(), 5 + 64), second = sequence_of(cache, other_stream(), 5 + 128);
  auto const before = contents_of(cache, second);
  first = std::move(second);
  CHECK(cache.free_pages() == 4);
  CHECK((contents_of(cache, first) == before));
  CHECK(second.tokens() == 0);
  sequence third = std::move(first);
  auto& same = third;
  third = std::move(same);
  CHECK((contents_of(cache, third) == before));
  first = cache.open();
  append_tokens(cache, first, small_stream(), 0, 69);
  CHECK(cache.free_pages() == 3);
}

TEST_CASE("a sequence that is assigned from another cache's takes its memory along", "[cache]") {
  counting_resource one, other;
  row_major_cache<S> from(small_artifact<S>(), {.max_tokens = 64, .memory = &one}),
      to(small_artifact<S>(), {.max_tokens = 64, .memory = &other});
  std::size_t const without = one.bytes();
  sequence it = from.open();
  CHECK(one.bytes() > without);
  it = to.open();
  CHECK(one.bytes() == without);
}

TEST_CASE("a sequence without memory for its exact tokens is not opened", "[cache]") {
  std::size_t const of_pool = [] {
    counting_resource memory;
    cache_type const cache(small_artifact<S>(), {.max_tokens = 128, .memory = &memory});
    return memory.bytes();
  }();
  counting_resource memory(of_pool + 100);
  cache_type cache(small_artifact<S>(), {.max_tokens = 128, .memory = &memory});
  CHECK_THROWS_AS(cache.open(), std::bad_alloc);
  CHECK(memory.bytes() == of_pool);
}
