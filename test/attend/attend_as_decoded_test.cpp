#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "backends/cpu/generic/backend.hpp"
#include "kvquant/attend/attend.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/core/scoped_timer.hpp"
#include "test/support/hand_made_artifact.hpp"
#include "test/support/thrown.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;

using used_spec = spec<nuq<3>, nuq<2>>;
using cache_type = kv_cache<used_spec, row_major_layout<used_spec>>;
using page = canonical_page<used_spec>;

constexpr std::size_t tokens = 300, kv_channels = 32, q_channels = 64;

/// Keys, values and queries of one layer, and attention over a cache of them.
struct model {
  float_matrix k = random_keys(tokens, kv_channels, 1), v = random_keys(tokens, kv_channels, 2),
               q = random_keys(tokens, q_channels, 3);
  artifact<used_spec> tables = hand_made_artifact<used_spec>(
      {.shape = {.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 16}, .outliers_k = 0.02}, {k});
  cpu::generic::attention<used_spec> attend{tables};
};

/// A sequence of its own cache, and what its queries were answered.
struct decoding {
  model const& of;
  cache_type cache;
  sequence tokens_so_far;
  float_matrix out{tokens, q_channels};

  decoding(model const& it, cache_options const& options)
      : of(it), cache(it.tables, options), tokens_so_far(cache.open()) {}

  void add(std::size_t first, std::size_t count, attend_options const& how = {}) {
    inline_executor here;
    attend_as_decoded(cache, of.attend, tokens_so_far, 0, of.k.view().middle_rows(first, count),
                      of.v.view().middle_rows(first, count), of.q.view().middle_rows(first, count),
                      out.view().middle_rows(first, count), how, here);
  }
  /// Chunks of these lengths, again and again, until all tokens from `first` on are there.
  void add_in_chunks(std::vector<std::size_t> const& lengths, std::size_t first = 0, attend_options const& how = {}) {
    for (std::size_t i = 0; first < tokens; ++i) {
      std::size_t const count = std::min(lengths[i % lengths.size()], tokens - first);
      add(first, count, how);
      first += count;
    }
  }
};

bool same_tail(layer_view const& a, layer_view const& b) {
  auto const same = [](view2d<half const> x, view2d<half const> y) {
    return x.rows == y.rows && std::equal(x.data, x.data + x.rows * x.cols, y.data);
  };
  return same(a.sink_k, b.sink_k) && same(a.sink_v, b.sink_v) && same(a.tail_k, b.tail_k) && same(a.tail_v, b.tail_v);
}

void check_same(decoding const& a, decoding const& b) {
  CHECK(a.out.values == b.out.values);
  auto const x = a.cache.view(a.tokens_so_far, 0), y = b.cache.view(b.tokens_so_far, 0);
  CHECK(same_tail(x, y));
  REQUIRE(x.sealed == y.sealed);
  page p, r;
  for (std::size_t index = 0; index < x.pages.size(); ++index)
    for (std::size_t head = 0; head < 2; ++head) {
      a.cache.read_page(a.tokens_so_far, 0, index, head, p);
      b.cache.read_page(b.tokens_so_far, 0, index, head, r);
      CHECK(p == r);
    }
}

std::vector<std::vector<std::size_t>> chunkings() {
  std::mt19937 random(5);
  std::vector<std::size_t> irregular;
  for (int i = 0; i < 50; ++i) irregular.push_back(1 + random() % 90);
  return {{tokens}, {63, 1}, {64}, {65}, {2}, {1, 128, 7}, irregular};
}

/// What is said of an attempt that stores nothing and answers nothing.
template <class F>
thrown refused_whole(decoding& it, F const& attempt) {
  auto const before = it.out.values;
  std::size_t const had = it.tokens_so_far.tokens(), free = it.cache.free_blocks();
  auto const refusal = error_of(attempt);
  CHECK(it.out.values == before);
  CHECK(it.tokens_so_far.tokens() == had);
  CHECK(it.cache.free_blocks() == free);
  return refusal;
}

/// Attention with a pause.
struct slow_attention : cpu::generic::attention<used_spec> {
  static constexpr double pause = 1e-3;  // seconds
  using cpu::generic::attention<used_spec>::attention;

  void operator()(int layer, std::span<attend_args const> batch, executor_ref executor) const {
    cpu::generic::attention<used_spec>::operator()(layer, batch, executor);
    std::this_thread::sleep_for(std::chrono::duration<double>(pause));
  }
};

TEST_CASE("what appending and attending take is added up for whoever asks", "[attend]") {
  model const it;
  slow_attention const attend(it.tables);
  decoding one(it, {.max_tokens = tokens});
  decode_seconds spent, whole;
  inline_executor here;
  auto const add = [&](std::size_t first, std::size_t count, attend_options const& how) {
    scoped_timer const timer(&whole, &decode_seconds::attend);
    attend_as_decoded(one.cache, attend, one.tokens_so_far, 0, it.k.view().middle_rows(first, count),
                      it.v.view().middle_rows(first, count), it.q.view().middle_rows(first, count),
                      one.out.view().middle_rows(first, count), how, here);
  };
  add(0, 1, {.spent = &spent});  // a sink: one step
  CHECK(spent.attend >= slow_attention::pause);
  CHECK((spent.append > 0 && spent.append < spent.attend));
  add(1, 65, {.spent = &spent});  // 63 tokens, the one that seals a page, another
  CHECK(spent.attend >= 4 * slow_attention::pause);
  CHECK(spent.append + spent.attend <= whole.attend);
  double const attended = spent.attend;
  add(66, 1, {});
  CHECK(spent.attend == attended);
}

}  // namespace

TEST_CASE("tokens in chunks are answered and stored as tokens one by one", "[attend]") {
  model const it;
  int const sinks = GENERATE(0, 1, 70), recent_pages = GENERATE(0, 1);
  cache_options const options{.max_tokens = tokens, .sinks = sinks, .recent_pages = recent_pages};
  CAPTURE(sinks, recent_pages);
  decoding one_by_one(it, options);
  one_by_one.add_in_chunks({1});
  for (auto const& lengths : chunkings()) {
    decoding chunked(it, options);
    chunked.add_in_chunks(lengths);
    CAPTURE(lengths.front());
    check_same(chunked, one_by_one);
  }
}

TEST_CASE("windows, scales and rotated queries are passed on", "[attend]") {
  model const it;
  decoding plain(it, {.max_tokens = tokens});
  plain.add_in_chunks({tokens});
  for (attend_options const& how : {attend_options{.window = 20}, attend_options{.softmax_scale = 0.1f},
                                    attend_options{.space = query_space::post_rope}}) {
    decoding one_by_one(it, {.max_tokens = tokens}), chunked(it, {.max_tokens = tokens});
    one_by_one.add_in_chunks({1}, 0, how);
    chunked.add_in_chunks({tokens}, 0, how);
    check_same(chunked, one_by_one);
    CHECK(chunked.out.values != plain.out.values);
  }
}

TEST_CASE("a sequence cut inside a page goes on the same in chunks", "[attend]") {
  model const it;
  std::size_t const kept = GENERATE(as<std::size_t>(), 1, 40, 65, 150);
  cache_options const options{.max_tokens = tokens, .recent_pages = GENERATE(0, 1)};
  auto const go_on = [&](decoding& cut, std::vector<std::size_t> const& lengths) {
    cut.add_in_chunks({tokens});
    cut.cache.truncate(cut.tokens_so_far, kept);
    cut.add_in_chunks(lengths, kept);
  };
  decoding one_by_one(it, options);
  go_on(one_by_one, {1});
  for (auto const& lengths : chunkings()) {
    decoding chunked(it, options);
    go_on(chunked, lengths);
    CAPTURE(kept, lengths.front());
    check_same(chunked, one_by_one);
  }
}

TEST_CASE("a query sees the page it completes quantized, and an incomplete one exactly", "[attend]") {
  model const it;
  // Without sinks and with one page: up to the 63rd token nothing but binary16 is read.
  decoding coarse(it, {.max_tokens = tokens, .sinks = 0}),
      exact(it, {.max_tokens = tokens, .sinks = 0, .recent_pages = 1});
  coarse.add(0, 64);
  exact.add(0, 64);
  auto const row = [](decoding const& of, std::size_t index) {
    auto const values = of.out.view().row(index);
    return std::vector(values.begin(), values.end());
  };
  for (std::size_t index = 0; index < 63; ++index) CHECK(row(coarse, index) == row(exact, index));
  CHECK(row(coarse, 63) != row(exact, 63));
}

TEST_CASE("tokens that find no page are refused before any is stored", "[attend]") {
  model const it;
  decoding small(it, {.max_tokens = 128, .sinks = 0});
  small.add(0, 30);
  auto const refusal = refused_whole(small, [&] { small.add(30, 200); });
  CHECK(refusal.code == errc::out_of_pages);
  small.add(30, 161);  // two pages and 63 tokens of tail
  CHECK(small.tokens_so_far.tokens() == 191);
}

TEST_CASE("a token that binary16 cannot hold is refused before any is stored", "[attend]") {
  model it;
  it.k(250, 3) = 1e6f;
  decoding spoilt(it, {.max_tokens = tokens});
  auto refusal = refused_whole(spoilt, [&] { spoilt.add(0, tokens); });
  CHECK(refusal.code == errc::bad_value);
  CHECK_THAT(refusal.text, says("keys: token 250, channel 3"));
  it.k(250, 3) = 0;
  it.v(299, 0) = std::nanf("");
  refusal = refused_whole(spoilt, [&] { spoilt.add(0, tokens); });
  CHECK_THAT(refusal.text, says("values: token 299, channel 0"));
}

TEST_CASE("queries that cannot be answered are refused before any token is stored", "[attend]") {
  model it;
  it.q(250, 3) = std::nanf("");
  decoding spoilt(it, {.max_tokens = tokens});
  auto refusal = refused_whole(spoilt, [&] { spoilt.add(0, tokens); });
  CHECK(refusal.code == errc::bad_value);
  CHECK_THAT(refusal.text, says("query 250, channel 3"));
  it.q(250, 3) = 3e38f;  // scores would overflow
  CHECK(refused_whole(spoilt, [&] { spoilt.add(0, tokens); }).code == errc::bad_value);
}

TEST_CASE("every token has a query and an output, or nothing is stored", "[attend]") {
  model const it;
  decoding all(it, {.max_tokens = tokens});
  auto const k = it.k.view(), v = it.v.view(), q = it.q.view();
  auto const out = all.out.view();
  inline_executor here;
  auto const check_refused = [&](view2d<float const> values, view2d<float const> queries, view2d<float> outputs) {
    auto const refusal = refused_whole(all, [&] {
      attend_as_decoded(all.cache, it.attend, all.tokens_so_far, 0, k, values, queries, outputs, {}, here);
    });
    CHECK(refusal.code == errc::bad_shape);
  };
  check_refused(v, q.middle_rows(0, 299), out);
  check_refused(v, q, out.middle_rows(0, 299));
  check_refused(v.middle_rows(0, 299), q, out);
  check_refused(v.middle_cols(0, 16), q, out);
  check_refused(v, q.middle_cols(0, 16), out);
}

TEST_CASE("no tokens are no trouble", "[attend]") {
  model const it;
  decoding none(it, {.max_tokens = tokens});
  none.add(0, 0);
  CHECK(none.tokens_so_far.tokens() == 0);
}
