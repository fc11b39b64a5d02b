#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/quantize/sides.hpp"
#include "kvquant/reference/pages.hpp"
#include "test/support/column_major_layout.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using S = spec<nuq<3>, nuq<3>>;
using cache_type = row_major_cache<S>;

constexpr std::size_t most_tokens = 512;

artifact<S> const& made() { return small_artifact<S>(); }

/// Pages that are full, less the recent ones.
std::size_t sealed_of(std::size_t tokens, cache_options const& options) {
  auto const sinks = static_cast<std::size_t>(*options.sinks), recent = static_cast<std::size_t>(options.recent_pages);
  std::size_t const full = (tokens - std::min(tokens, sinks)) / page_tokens;
  return (full - std::min(full, recent)) * page_tokens;
}

/// Appends tokens that the caller has rounded to binary16.
template <class Cache>
void append_halves(Cache& cache, sequence& to, std::size_t first, std::size_t count) {
  for (int layer = 0; layer < static_cast<int>(cache.layers()); ++layer) {
    auto const k = to_halves(small_stream().keys(layer, first, count)),
               v = to_halves(small_stream().values(layer, first, count));
    cache.append(to, layer, view2d<half const>(k.data(), count, cache.kv_channels()),
                 view2d<half const>(v.data(), count, cache.kv_channels()));
  }
}

/// Calls `append(first, count)` for chunks that together are `tokens`, empty ones among them.
template <class Append>
void in_chunks(std::size_t tokens, std::uint64_t seed, Append&& append) {
  std::mt19937_64 random(seed);
  std::size_t const largest = 1 + random() % 150;
  for (std::size_t first = 0; first < tokens;) {
    std::size_t const count = std::min(random() % (largest + 1), tokens - first);
    append(first, count);
    first += count;
  }
}

/// What a call complains of that leaves sequence and pool as they were.
template <class Append>
thrown refusal(cache_type const& cache, sequence const& of, Append&& append) {
  auto const before = contents_of(cache, of);
  std::size_t const free = cache.free_blocks();
  thrown const found = error_of(append);
  CHECK((contents_of(cache, of) == before));
  CHECK(cache.free_blocks() == free);
  return found;
}

}  // namespace

TEST_CASE("however tokens come, as floats or halves, the bytes are the same", "[cache]") {
  int const sinks = GENERATE(0, 1, 5, 70), recent = GENERATE(0, 1, 2);
  std::size_t const tokens = GENERATE(as<std::size_t>(), 3, 64, 450);
  CAPTURE(sinks, recent, tokens);
  cache_type cache(made(), {.max_tokens = 8 * most_tokens, .sinks = sinks, .recent_pages = recent});
  auto const at_once = contents_of(cache, sequence_of(cache, small_stream(), tokens));
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    sequence floats = cache.open(), halves = cache.open(tokens);
    in_chunks(tokens, seed,
              [&](auto first, auto count) { append_tokens(cache, floats, small_stream(), first, count); });
    in_chunks(tokens, seed, [&](auto first, auto count) { append_halves(cache, halves, first, count); });
    CHECK((contents_of(cache, floats) == at_once));
    CHECK((contents_of(cache, halves) == at_once));
  }
}

TEST_CASE("a page is sealed when the tail holds a page more than the recent ones", "[cache]") {
  int const sinks = GENERATE(0, 1, 5, 70), recent = GENERATE(0, 1, 2);
  cache_options const options{.max_tokens = most_tokens, .sinks = sinks, .recent_pages = recent};
  cache_type cache(made(), options);
  REQUIRE(cache.recent_pages() == static_cast<std::size_t>(recent));
  sequence it = cache.open();
  for (std::size_t tokens = 0; tokens <= 300; ++tokens) {
    std::size_t const sealed = sealed_of(tokens, options);
    layer_view const view = cache.view(it, 1);
    REQUIRE(it.tokens() == tokens);
    REQUIRE(view.tokens() == tokens);
    REQUIRE(view.sink_k.rows == std::min(tokens, cache.sinks()));
    REQUIRE(view.sealed == sealed);
    REQUIRE(view.pages.size() == sealed / page_tokens);
    std::size_t const room = cache.room_before_seal(it, 1);
    REQUIRE(sealed_of(tokens + room, options) == sealed);
    REQUIRE(sealed_of(tokens + room + 1, options) == sealed + page_tokens);
    append_tokens(cache, it, small_stream(), tokens, 1);
  }
}

TEST_CASE("what is read back is exact, or what the reference makes of it", "[cache]") {
  cache_type cache(made(), {.max_tokens = most_tokens, .sinks = 5, .recent_pages = 1});
  sequence const it = sequence_of(cache, small_stream(), 300);  // 5 sinks, 3 pages, a tail of 103
  REQUIRE(cache.view(it, 0).sealed == 192);
  for (int layer = 0; layer < 2; ++layer) {
    auto const [k, v] = reference::read_layer(cache, made(), it, layer);
    auto const keys = to_halves(small_stream().keys(layer, 0, 300)),
               values = to_halves(small_stream().values(layer, 0, 300));
    std::size_t exact = 0;
    for (std::size_t t = 0; t < 300; ++t)
      for (std::size_t c = 0; c < 32; ++c) {
        auto const row = static_cast<Eigen::Index>(t), col = static_cast<Eigen::Index>(c);
        bool const same = k(row, col) == to_float(keys[t * 32 + c]) && v(row, col) == to_float(values[t * 32 + c]);
        exact += same;
        if (t < 5 || t >= 197) REQUIRE(same);
      }
    CHECK(exact < 150 * 32);  // pages are not
    canonical_page<S> page;
    for (std::size_t index = 0; index < 3; ++index)
      for (std::size_t head = 0; head < 2; ++head) {
        cache.read_page(it, layer, index, head, page);
        auto const decoded = reference::decode_page(page, made(), layer, static_cast<int>(head));
        auto const first = static_cast<Eigen::Index>(5 + 64 * index), column = static_cast<Eigen::Index>(16 * head);
        CHECK(k.block(first, column, 64, 16) == decoded.k);
        CHECK(v.block(first, column, 64, 16) == decoded.v);
        for (outlier const slot : page.k_slots)  // a slot gives its element back, but for the residual's rounding
          CHECK(decoded.k.data()[slot.index] ==
                Approx(to_float(keys[(5 + 64 * index + slot.index / 16) * 32 + 16 * head + slot.index % 16]))
                    .margin(0.001 * std::abs(to_float(slot.residual)) + 1e-4));
      }
  }
}

TEST_CASE("a token's range is that of its values over all heads, in each head's page", "[cache]") {
  cache_type cache(made(), {.max_tokens = most_tokens, .sinks = 5});
  sequence const it = sequence_of(cache, small_stream(), 5 + 2 * 64);
  rank_selector ranks(32, made().info.outlier_fraction_v);
  canonical_page<S> page;
  for (int layer = 0; layer < 2; ++layer)
    for (std::size_t index = 0; index < 2; ++index)
      for (std::size_t head = 0; head < 2; ++head) {
        cache.read_page(it, layer, index, head, page);
        for (std::size_t t = 0; t < page_tokens; ++t) {
          std::vector<float> token;
          for (half const x : to_halves(small_stream().values(layer, 5 + 64 * index + t, 1)))
            token.push_back(to_float(x));
          value_range const expected = ranks.select(token);
          CHECK(page.v_ranges[t].lower == expected.lower);
          CHECK(page.v_ranges[t].upper == expected.upper);
        }
      }
}

TEST_CASE("any executor gives the same bytes", "[cache]") {
  cache_type cache(made(), {.max_tokens = 8 * most_tokens, .sinks = 3});
  auto const expected = contents_of(cache, sequence_of(cache, small_stream(), 400));
  int const workers = GENERATE(1, 2, 4);
  cpu::thread_pool pool(workers);
  sequence it = cache.open();
  in_chunks(400, 9, [&](auto first, auto count) { append_tokens(cache, it, small_stream(), first, count, pool); });
  CHECK((contents_of(cache, it) == expected));
}

TEST_CASE("any layout holds the same pages", "[cache]") {
  cache_options const options{.max_tokens = most_tokens, .sinks = 1};
  cache_type rows(made(), options);
  kv_cache<S, column_major_layout<S>> columns(made(), options);
  sequence const a = sequence_of(rows, small_stream(), 300), b = sequence_of(columns, small_stream(), 300);
  CHECK((pages_of(rows, a) == pages_of(columns, b)));
  CHECK(pages_of(rows, a).size() == 2 * 2 * 4);
}

TEST_CASE("rows that lie apart are appended as those that do not", "[cache]") {
  cache_type cache(made(), {.max_tokens = 2 * most_tokens});
  auto const apart = [](view2d<float const> from) {
    float_matrix out(from.rows, from.cols + 3, 1e9f);
    for (std::size_t t = 0; t < from.rows; ++t)
      for (std::size_t c = 0; c < from.cols; ++c) out(t, c + 2) = from(t, c);
    return out;
  };
  sequence it = cache.open();
  for (int layer = 0; layer < 2; ++layer) {
    auto const k = apart(small_stream().keys(layer, 0, 100)), v = apart(small_stream().values(layer, 0, 100));
    cache.append(it, layer, k.view().middle_cols(2, 32), v.view().middle_cols(2, 32));
  }
  CHECK((contents_of(cache, it) == contents_of(cache, sequence_of(cache, small_stream(), 100))));
}

TEST_CASE("layers are appended on their own", "[cache]") {
  cache_type cache(made(), {.max_tokens = most_tokens});
  sequence it = cache.open();
  cache.append(it, 1, small_stream().keys(1, 0, 90), small_stream().values(1, 0, 90));
  CHECK(it.tokens() == 90);
  CHECK(it.tokens(0) == 0);
  CHECK(it.tokens(1) == 90);
  CHECK(cache.view(it, 0).tokens() == 0);
  cache.append(it, 0, small_stream().keys(0, 0, 90), small_stream().values(0, 0, 90));
  CHECK((contents_of(cache, it) == contents_of(cache, sequence_of(cache, small_stream(), 90))));
}

TEST_CASE("what binary16 cannot hold is refused by name before anything is stored", "[cache]") {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN(), infinite = std::numeric_limits<float>::infinity();
  cache_type cache(made(), {.max_tokens = most_tokens});
  sequence it = sequence_of(cache, small_stream(), 60);
  for (float const bad : {nan, infinite, -infinite, 65505.0f, -1e30f})
    for (bool const in_keys : {true, false}) {
      float_matrix k(100, 32, 1), v(100, 32, 2);
      (in_keys ? k : v)(99, 31) = bad;
      auto const found = refusal(cache, it, [&] { cache.append(it, 0, k.view(), v.view()); });
      CHECK(found.code == errc::bad_value);
      CHECK_THAT(found.text, says(in_keys ? "keys: token 99, channel 31" : "values: token 99, channel 31"));
      CHECK(refusal(cache, it, [&] { cache.prepare(it, 0, k.view(), v.view()); }).code == errc::bad_value);
    }
  for (half const bad : {half{0x7e00}, half{0x7c00}, half{0xfc00}}) {
    std::vector<half> k(64), v(64);
    v[40] = bad;
    view2d<half const> const rows(k.data(), 2, 32), bad_rows(v.data(), 2, 32);
    CHECK_THAT(refusal(cache, it, [&] { cache.append(it, 1, rows, bad_rows); }).text,
               says("values: token 1, channel 8"));
  }
  float_matrix const largest(5, 32, 65504), lowest(5, 32, -65504);
  cache.append(it, 0, largest.view(), lowest.view());
  REQUIRE(cache.view(it, 0).tail_v.rows == 0);  // sealed with the others
  auto const [k, v] = reference::read_layer(cache, made(), it, 0);
  CHECK((k.allFinite() && v.allFinite()));
}

TEST_CASE("shapes, layers and sequences that do not belong are refused", "[cache]") {
  cache_type cache(made(), {.max_tokens = most_tokens}), other(made(), {.max_tokens = most_tokens});
  sequence it = sequence_of(cache, small_stream(), 100);
  float_matrix const right(3, 32), fewer(2, 32), narrow(3, 31), wide(3, 33);
  auto const code_of = [&](sequence& to, int layer, float_matrix const& k, float_matrix const& v) {
    return refusal(cache, it, [&] { cache.append(to, layer, k.view(), v.view()); }).code;
  };
  CHECK(code_of(it, 0, right, fewer) == errc::bad_shape);
  CHECK(code_of(it, 0, narrow, narrow) == errc::bad_shape);
  CHECK(code_of(it, 0, right, wide) == errc::bad_shape);
  CHECK(code_of(it, 0, narrow, right) == errc::bad_shape);
  CHECK(code_of(it, -1, right, right) == errc::bad_value);
  CHECK(code_of(it, 2, right, right) == errc::bad_value);
  sequence foreign = other.open(), gone = cache.open();
  sequence const taken = std::move(gone);
  CHECK(code_of(foreign, 0, right, right) == errc::bad_value);
  CHECK(code_of(gone, 0, right, right) == errc::bad_value);  // moved from
  CHECK(foreign.tokens() == 0);
  for (auto const& call : std::vector<std::function<void()>>{
           [&] { cache.fork(foreign); }, [&] { cache.view(foreign, 0); }, [&] { cache.truncate(foreign, 0); },
           [&] { cache.reserve(foreign, 1); }, [&] { cache.drop(foreign, 0, 0); },
           [&] { static_cast<void>(cache.bytes(foreign)); }, [&] { cache.view(it, 2); }})
    CHECK(error_of(call).code == errc::bad_value);
  canonical_page<S> page;
  CHECK(error_of([&] { cache.read_page(it, 0, 1, 0, page); }).code == errc::bad_value);
  CHECK(error_of([&] { cache.read_page(it, 0, 0, 2, page); }).code == errc::bad_value);
}

TEST_CASE("appending nothing changes nothing", "[cache]") {
  cache_type cache(made(), {.max_tokens = 0, .sinks = 2});
  sequence it = cache.open();
  append_tokens(cache, it, small_stream(), 0, 0);
  CHECK(it.tokens() == 0);
  append_tokens(cache, it, small_stream(), 0, 2 + 63);  // all that fits without pages
  auto const before = contents_of(cache, it);
  append_tokens(cache, it, small_stream(), 65, 0);
  CHECK((contents_of(cache, it) == before));
}

TEST_CASE("a cache refuses artifacts and options that it cannot serve", "[cache]") {
  auto const complaint_after = [](auto change) {
    artifact<S> it = made();
    cache_options options{.max_tokens = 64};
    change(it, options);
    return error_of([&] { cache_type(it, options); });
  };
  auto const post_rope = complaint_after([](auto& it, auto&) { it.info.keys = key_space::post_rope; });
  CHECK(post_rope.code == errc::unsupported);
  CHECK_THAT(post_rope.text, says("after RoPE"));
  CHECK(complaint_after([](auto& it, auto&) { it.info.spec = "nuq4"; }).code == errc::bad_format);
  CHECK(complaint_after([](auto& it, auto&) { it.layers.pop_back(); }).code == errc::bad_shape);
  CHECK(complaint_after([](auto& it, auto&) { it.info.shape.head_dim = 24; }).code == errc::bad_shape);
  CHECK(complaint_after([](auto& it, auto&) { it.info.shape.head_dim = 32; }).code == errc::bad_shape);
  CHECK(complaint_after([](auto& it, auto&) { it.info.outlier_fraction_k = 1; }).code == errc::bad_value);
  CHECK(complaint_after([](auto&, auto& options) { options.sinks = -1; }).code == errc::bad_value);
  CHECK(complaint_after([](auto&, auto& options) { options.sinks = (1 << 16) + 1; }).code == errc::bad_value);
  CHECK(complaint_after([](auto&, auto& options) { options.recent_pages = -1; }).code == errc::bad_value);
  CHECK(complaint_after([](auto&, auto& options) { options.recent_pages = (1 << 20) + 1; }).code == errc::bad_value);
  CHECK_THAT(complaint_after([](auto&, auto& options) { options.max_tokens = SIZE_MAX; }).text, says("max_tokens"));
}

TEST_CASE("sinks are the artifact's unless given, and tokens fill whole pages", "[cache]") {
  CHECK(cache_type(made(), {.max_tokens = 64}).sinks() == 1);
  CHECK(cache_type(made(), {.max_tokens = 64, .sinks = 4}).sinks() == 4);
  CHECK(cache_type(made(), {.max_tokens = 64}).free_blocks() == 2);
  CHECK(cache_type(made(), {.max_tokens = 65}).free_blocks() == 4);
  CHECK(cache_type(made(), {}).free_blocks() == 0);
}
