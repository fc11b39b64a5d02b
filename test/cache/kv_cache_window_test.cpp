/// Layers that see a window alone: what they keep, give back, and refuse.

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "kvquant/attend/attend_args.hpp"
#include "kvquant/cache/cache_io.hpp"
#include "test/support/sequence_files.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

constexpr std::size_t window = 100, sink_count = 5, longest = 1000;

/// Layers 0 and 2 of three see 100 tokens.
artifact_choice windowed() {
  artifact_choice it{.shape = {.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .rope = {}}};
  it.shape.local = {.layers = {0, 2}, .window = window, .rope = {.theta = 100}};
  return it;
}
token_stream const& windowed_stream() {
  static token_stream const it(windowed().shape, longest);
  return it;
}
using S = spec<nuq<3>, nuq<3>>;
artifact<S> const& windowed_artifact() {
  static artifact<S> const it = artifact_for<S>(windowed_stream(), windowed());
  return it;
}
artifact<S> const& unlimited_artifact() {
  static artifact<S> const it = [] {
    auto plain = windowed_artifact();
    plain.info.shape.local = {};
    return plain;
  }();
  return it;
}

struct windowed_cache : row_major_cache<S> {
  explicit windowed_cache(int rewind = 64, std::size_t pages = 64, int recent = 0)
      : kv_cache(windowed_artifact(), {.max_tokens = pages * page_tokens,
                                       .sinks = static_cast<int>(sink_count),
                                       .recent_pages = recent,
                                       .rewind_tokens = rewind}) {}
};

/// The stream's tokens [first, last), `step` a call.
template <class Cache>
void append_steps(Cache& cache, sequence& to, std::size_t first, std::size_t last, std::size_t step) {
  for (std::size_t at = first; at < last; at += step)
    append_tokens(cache, to, windowed_stream(), at, std::min(step, last - at));
}
template <class Cache>
sequence stepwise(Cache& cache, std::size_t tokens, std::size_t step = 7) {
  sequence it = cache.open(tokens);
  append_steps(cache, it, 0, tokens, step);
  return it;
}

/// Pages that a local layer may give back when the next token is the one at `position`.
std::size_t behind(std::size_t position, std::size_t rewind) {
  std::size_t const kept = sink_count + window + rewind - 1;
  return position < kept ? 0 : (position - kept) / page_tokens;
}

/// That a sequence holds what one of a cache without windows holds, but for pages that are gone.
template <class Cache>
void check_holds(Cache const& cache, sequence const& of, std::size_t tokens) {
  static row_major_cache<S> whole(unlimited_artifact(), {.max_tokens = 4096, .sinks = static_cast<int>(sink_count)});
  sequence const expected = sequence_of(whole, windowed_stream(), tokens);
  canonical_page<S> found, wanted;
  for (int layer = 0; layer < 3; ++layer) {
    layer_view const view = cache.view(of, layer);
    REQUIRE(view.tokens() == tokens);
    REQUIRE(view.gone + view.pages.size() <= whole.view(expected, layer).pages.size());  // fewer with recent pages
    CHECK((layer == 1 ? view.gone == 0 : view.gone == 0 || !view.pages.empty()));
    for (std::size_t page = view.gone; page < view.gone + view.pages.size(); ++page)
      for (std::size_t head = 0; head < 2; ++head) {
        cache.read_page(of, layer, page, head, found);
        whole.read_page(expected, layer, page, head, wanted);
        CHECK(found == wanted);
      }
  }
}

}  // namespace

TEST_CASE("pages behind a layer's window are given back as tokens come", "[cache]") {
  int const rewind = GENERATE(0, 64, 200);
  std::size_t const step = GENERATE(as<std::size_t>(), 1, 7, 64, 150), tokens = 700;
  windowed_cache cache(rewind);
  std::size_t const free = cache.free_blocks();
  std::optional<sequence> it = stepwise(cache, tokens, step);
  std::size_t const before_last = (tokens - 1) / step * step;
  CAPTURE(rewind, step);
  for (int const layer : {0, 2})
    CHECK(cache.view(*it, layer).gone == behind(before_last, static_cast<std::size_t>(rewind)));
  CHECK(cache.view(*it, 1).gone == 0);
  std::size_t const pages = (tokens - sink_count) / page_tokens;
  CHECK(cache.free_blocks() == free - 3 * pages + 2 * cache.view(*it, 0).gone);
  check_holds(cache, *it, tokens);
  it.reset();
  CHECK(cache.free_blocks() == free);
}

TEST_CASE("a window shorter than the tail keeps a page", "[cache]") {
  auto choice = windowed();
  choice.shape.local.window = 1;
  row_major_cache<S> cache(artifact_for<S>(windowed_stream(), choice),
                           {.max_tokens = 2048, .sinks = 5, .recent_pages = 2, .rewind_tokens = 0});
  sequence it = stepwise(cache, 500, 1);
  CHECK(cache.view(it, 0).pages.size() == 1);
  CHECK(cache.view(it, 0).gone == 4);
  CHECK(cache.view(it, 1).pages.size() == 5);
  check_holds(cache, it, 500);
}

TEST_CASE("a question that reaches back to what was given back is refused", "[cache]") {
  windowed_cache cache(0);
  sequence const it = stepwise(cache, 600, 1);
  float_matrix const q(300, 64, 0.5f);
  float_matrix out(300, 64);
  auto const check = [&](int layer, std::size_t rows, std::size_t asked_window) {
    attend_args const args{.cache = cache.view(it, layer),
                           .q = q.view().middle_rows(0, rows),
                           .out = out.view().middle_rows(0, rows),
                           .window = asked_window};
    validate(args, windowed().shape);
  };
  std::size_t const kept = cache.view(it, 0).first_kept();
  CHECK_NOTHROW(check(0, 1, 0));
  CHECK_NOTHROW(check(0, 600 - kept - window + 1, 0));
  CHECK_NOTHROW(check(1, 300, 0));
  CHECK_NOTHROW(check(0, 600 - kept, 1));
  auto const refusal = error_of([&] { check(0, 300, 0); });
  CHECK(refusal.code == errc::bad_value);
  CHECK_THAT(refusal.text, says("the first of 300 queries sees tokens from 201") &&
                               says("those before " + std::to_string(kept)) && says("given back"));
}

TEST_CASE("within the tokens to rewind a sequence can be cut and goes on as it was", "[cache]") {
  std::size_t const cut = GENERATE(as<std::size_t>(), 1, 20, 64);
  windowed_cache cache(64, 64, GENERATE(0, 1));
  sequence it = stepwise(cache, 650, 1);
  bool const shared = GENERATE(false, true);
  std::optional<sequence> const fork = shared ? std::optional(cache.fork(it)) : std::nullopt;
  cache.truncate(it, 650 - cut);
  CHECK(it.tokens() == 650 - cut);
  append_steps(cache, it, 650 - cut, 800, 3);
  CAPTURE(cut, shared);
  if (cache.recent_pages() == 0)
    check_holds(cache, it, 800);
  else
    CHECK((contents_of(cache, it) == contents_of(cache, stepwise(cache, 800, 3))));
}

TEST_CASE("a cut to where a window would see what was given back is refused", "[cache]") {
  windowed_cache cache(64);
  sequence it = stepwise(cache, 800, 1);
  auto const before = contents_of(cache, it);
  std::size_t const kept = cache.view(it, 0).first_kept(), least = kept + window - 1;
  for (std::size_t const tokens : {sink_count + 1, std::size_t{300}, least - 1}) {
    auto const refusal = error_of([&] { cache.truncate(it, tokens); });
    CHECK(refusal.code == errc::bad_value);
    CHECK_THAT(refusal.text,
               says("truncate: to " + std::to_string(tokens) + " tokens, where layer 0 sees those from") &&
                   says("before " + std::to_string(kept)) &&
                   says("expected at least " + std::to_string(least) + " tokens, or up to 5"));
    CHECK((contents_of(cache, it) == before));
  }
  CHECK_NOTHROW(cache.truncate(it, least));
}

TEST_CASE("a sequence that is cut to its sinks starts anew", "[cache]") {
  windowed_cache cache;
  std::size_t const free = cache.free_blocks(), tokens = GENERATE(as<std::size_t>(), 0, 3, 5);
  sequence it = stepwise(cache, 500);
  cache.truncate(it, tokens);
  CHECK(cache.free_blocks() == free);
  append_steps(cache, it, tokens, 400, 11);
  check_holds(cache, it, 400);
}

TEST_CASE("a fork keeps the pages that the other gives back", "[cache]") {
  windowed_cache cache(0);
  std::size_t const free = cache.free_blocks();
  std::optional<sequence> it = stepwise(cache, 400, 1), copy = cache.fork(*it);
  std::size_t const gone = cache.view(*it, 0).gone;
  REQUIRE(gone > 0);
  append_steps(cache, *it, 400, 900, 1);
  CHECK(cache.view(*it, 0).gone > gone);
  CHECK(cache.view(*copy, 0).gone == gone);
  check_holds(cache, *copy, 400);
  check_holds(cache, *it, 900);
  it.reset();
  append_steps(cache, *copy, 400, 600, 1);
  check_holds(cache, *copy, 600);
  copy.reset();
  CHECK(cache.free_blocks() == free);
}

TEST_CASE("tokens are dropped with pages that were given back, or behind them", "[cache]") {
  windowed_cache cache(0);
  sequence it = stepwise(cache, 900, 1);
  std::size_t const gone = cache.view(it, 0).gone, free = cache.free_blocks();
  REQUIRE(gone > 4);
  SECTION("all of the range is gone") {
    cache.drop(it, sink_count + page_tokens, 2 * page_tokens);
    CHECK(cache.view(it, 0).gone == gone - 2);
    CHECK(cache.free_blocks() == free + 2);  // of the layer that sees all
  }
  SECTION("nothing of an empty range") {
    cache.drop(it, sink_count + page_tokens, 0);
    CHECK(cache.view(it, 0).gone == gone);
    CHECK(cache.free_blocks() == free);
  }
  CHECK(cache.view(it, 0).tokens() == cache.view(it, 1).tokens());
  append_steps(cache, it, 900, 1000, 1);
  CHECK(cache.view(it, 0).gone * page_tokens + sink_count + window <= it.tokens());
}

TEST_CASE("a drop that would move a window over what was given back is refused", "[cache]") {
  // Of 840 tokens pages 10 to 12 are there, of 900 pages 11 and 12.
  for (auto const& [tokens, first, pages] :
       {std::array<std::size_t, 3>{840, 11, 2}, {840, 9, 4}, {900, 11, 2}, {900, 10, 3}}) {
    CAPTURE(tokens, first, pages);
    windowed_cache cache;
    sequence it = stepwise(cache, tokens, 1);
    auto const before = contents_of(cache, it);
    auto const refusal = error_of(
        [&, &first = first, &pages = pages] { cache.drop(it, sink_count + first * page_tokens, pages * page_tokens); });
    CHECK(refusal.code == errc::bad_value);
    CHECK_THAT(refusal.text, says("drop: ") && says("layer 0 would see tokens before") && says("given back"));
    CHECK((contents_of(cache, it) == before));
    CHECK_NOTHROW(cache.drop(it, sink_count + 2 * page_tokens, page_tokens));
  }
}

TEST_CASE("bytes are those of the pages that are there", "[cache]") {
  windowed_cache cache(0);
  sequence const it = stepwise(cache, 900, 1);
  std::size_t pages = 0;
  for (int layer = 0; layer < 3; ++layer) pages += 2 * cache.view(it, layer).pages.size();
  auto const& geometry = cache.geometry();
  byte_report const bytes = cache.bytes(it);
  CHECK(bytes.codes == pages * (geometry.k_code_bytes() + geometry.v_code_bytes()));
  CHECK(bytes.slots == pages * geometry.slot_bytes());
  CHECK(cache.bytes().codes == bytes.codes);
}

TEST_CASE("a sequence that gave pages back goes to a file and comes back", "[cache]") {
  windowed_cache cache;
  std::size_t const tokens = GENERATE(as<std::size_t>(), 300, 700);
  sequence it = stepwise(cache, tokens, 1);
  bytes const file = saved(cache, it);
  CHECK(file[8] == std::byte{2});
  windowed_cache other(0);
  sequence back = loaded(other, file);
  CHECK((contents_of(other, back) == contents_of(cache, it)));
  CHECK(other.view(back, 0).gone == cache.view(it, 0).gone);
  CHECK(saved(other, back) == file);
  append_steps(other, back, tokens, tokens + 200, 5);
  check_holds(other, back, tokens + 200);

  sequence const young = stepwise(cache, 150, 1);
  CHECK(saved(cache, young)[8] == std::byte{1});
}

TEST_CASE("the file does not depend on which layer gave back first", "[cache]") {
  windowed_cache cache;
  sequence it = cache.open();
  for (int layer = 0; layer < 3; ++layer)
    for (std::size_t at = 0; at < 600; at += layer == 0 ? 600 : 1)
      cache.append(it, layer, windowed_stream().keys(layer, at, layer == 0 ? 600 : 1),
                   windowed_stream().values(layer, at, layer == 0 ? 600 : 1));
  REQUIRE(cache.view(it, 0).gone < cache.view(it, 2).gone);
  CHECK(saved(cache, it) == saved(cache, stepwise(cache, 600, 1)));
}

TEST_CASE("files that lack pages which a layer needs, or name others, are refused", "[cache]") {
  windowed_cache cache;
  bytes const file = saved(cache, stepwise(cache, 600, 1));
  auto const refusal_with = [&](nlohmann::json const& gone) {
    INFO(gone);
    sequence_parts parts(file);
    parts.description["gone"] = gone;
    std::size_t const free = cache.free_blocks();
    auto const found = error_of([&] { loaded(cache, parts.forged()); });
    CHECK(cache.free_blocks() == free);
    return found;
  };
  nlohmann::json const both = {0, 2};
  for (nlohmann::json const& pages : {nlohmann::json(0), nlohmann::json(9), nlohmann::json(std::uint64_t{1} << 60)})
    CHECK(refusal_with({{"layers", both}, {"pages", pages}}).code == errc::bad_file);
  CHECK_THAT(refusal_with({{"layers", both}, {"pages", 5}}).text, says("bytes are not those of"));
  CHECK_THAT(refusal_with({{"layers", {2, 0}}, {"pages", 6}}).text, says("layer 0 after 2"));
  CHECK_THAT(refusal_with({{"layers", {0, 3}}, {"pages", 6}}).text, says("layer 3 after 0"));
  CHECK_THAT(refusal_with({{"layers", {0, 1}}, {"pages", 6}}).text, says("expected the 2 that have a window"));
  CHECK(refusal_with({{"layers", nlohmann::json::array()}, {"pages", 6}}).code == errc::bad_file);
  CHECK(refusal_with({{"layers", "all"}, {"pages", 6}}).code == errc::bad_file);
  CHECK(refusal_with(3).code == errc::bad_file);
  row_major_cache<S> whole(unlimited_artifact(), {.max_tokens = 4096, .sinks = 5});
  CHECK(error_of([&] { loaded(whole, file); }).code == errc::bad_format);
}

TEST_CASE("with a number of sequences local layers need pages for their windows alone", "[cache]") {
  std::size_t const sequences = GENERATE(as<std::size_t>(), 1, 2), tokens = 1000;
  row_major_cache<S> cache(windowed_artifact(),
                           {.max_tokens = sequences * tokens, .sinks = 5, .max_sequences = sequences});
  std::size_t const pages = (sequences * tokens + page_tokens - 1) / page_tokens;
  CHECK(cache.free_blocks() < 3 * pages);
  std::vector<sequence> all;
  for (std::size_t i = 0; i < sequences; ++i) {
    all.push_back(cache.open());
    for (int layer = 0; layer < 3; ++layer) {  // as `attend_as_decoded` does with a prompt
      cache.prepare(all.back(), layer, windowed_stream().keys(layer, 0, tokens),
                    windowed_stream().values(layer, 0, tokens));
      for (std::size_t at = 0; at < tokens; at += 50)
        cache.append(all.back(), layer, windowed_stream().keys(layer, at, 50), windowed_stream().values(layer, at, 50));
    }
  }
  for (sequence const& it : all) check_holds(cache, it, tokens);
}
