#include "kvquant/engine.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/cpu/generic/backend.hpp"
#include "test/support/containers.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

namespace kvquant {
namespace {

using backend = cpu::generic::backend;
using S = spec<nuq<3>, nuq<3>>;
using cache_type = kv_cache<S, backend::page_layout<S>>;
using test::float_matrix;

test::token_stream const& stream() { return test::small_stream(); }
artifact<S> const& made() { return test::small_artifact<S>(); }
cache_options sizes() { return {.max_tokens = 1024}; }
std::unique_ptr<engine> small_engine() { return make_engine<backend>(made(), sizes()); }

inline_executor here;

std::unique_ptr<engine_sequence> sequence_of(engine& from, std::size_t tokens) {
  auto it = from.open(tokens);
  for (int layer = 0; layer < made().info.shape.layers; ++layer)
    it->append(layer, stream().keys(layer, 0, tokens), stream().values(layer, 0, tokens), here);
  return it;
}

/// Queries, and room for all that attention says of them.
struct question {
  float_matrix q, out, most, sum;

  explicit question(std::size_t rows = 3, std::uint64_t seed = 5)
      : q(test::random_keys(rows, 64, seed)), out(rows, 64), most(rows, 4), sum(rows, 4) {}
  std::vector<float> answer() const {
    std::vector<float> all = out.values;
    all.insert(all.end(), most.values.begin(), most.values.end());
    all.insert(all.end(), sum.values.begin(), sum.values.end());
    return all;
  }
  attend_request to(engine_sequence const& of, attend_options const& options = {}) {
    return {&of, q, out.view(), most.view(), sum.view(), options};
  }
};

/// What both layers answer.
std::vector<float> answers(engine const& from, engine_sequence const& of, attend_options const& options = {}) {
  std::vector<float> all;
  for (int layer = 0; layer < 2; ++layer) {
    question it;
    attend_request const request = it.to(of, options);
    from.attend(layer, {&request, 1}, here);
    auto const answer = it.answer();
    all.insert(all.end(), answer.begin(), answer.end());
  }
  return all;
}
/// The same without the engine.
std::vector<float> answers(cache_type const& from, sequence const& of, attend_options const& options = {}) {
  backend::attention<S> const attend(made());
  std::vector<float> all;
  for (int layer = 0; layer < 2; ++layer) {
    question it;
    attend_args const args{.cache = from.view(of, layer),
                           .q = it.q,
                           .out = it.out.view(),
                           .score_max = it.most.view(),
                           .score_sum = it.sum.view(),
                           .space = options.space,
                           .window = options.window,
                           .softmax_scale = options.softmax_scale};
    attend(layer, {&args, 1}, here);
    auto const answer = it.answer();
    all.insert(all.end(), answer.begin(), answer.end());
  }
  return all;
}

TEST_CASE("an engine says which backend and artifact it has") {
  auto const it = small_engine();
  CHECK(it->backend() == "cpu-generic");
  CHECK(it->info().spec == "nuq3");
  CHECK(it->info().origin.model_hash == "0123");
  auto const other = make_engine<backend>(made(), {.max_tokens = 1024, .sinks = 5, .recent_pages = 2});
  CHECK(it->sinks() == 1);
  CHECK(it->recent_pages() == 0);
  CHECK(other->sinks() == 5);
  CHECK(other->recent_pages() == 2);
}

TEST_CASE("an engine answers as its cache and attention do") {
  auto const it = small_engine();
  cache_type cache(made(), sizes());
  std::size_t const tokens = GENERATE(as<std::size_t>(), 3, 65, 200);
  auto const plain = test::sequence_of(cache, stream(), tokens);
  auto const of = sequence_of(*it, tokens);
  CHECK(of->tokens() == tokens);
  attend_options const options = GENERATE(attend_options{}, attend_options{.space = query_space::post_rope},
                                          attend_options{.window = 70}, attend_options{.softmax_scale = 0.3f});
  CHECK(answers(*it, *of, options) == answers(cache, plain, options));
  CHECK(of->bytes().total() == cache.bytes(plain).total());
  CHECK(it->bytes().total() == cache.bytes().total());
}

TEST_CASE("appending and attending together is attend_as_decoded") {
  auto const it = small_engine();
  auto const of = it->open();
  cache_type cache(made(), sizes());
  sequence plain = cache.open();
  backend::attention<S> const attend(made());
  attend_options const options{.window = 90};
  question found(150), expected(150);
  auto const k = stream().keys(1, 0, 150), v = stream().values(1, 0, 150);
  of->append_and_attend(1, k, v, found.q, found.out.view(), options, here);
  attend_as_decoded(cache, attend, plain, 1, k, v, expected.q, expected.out.view(), options, here);
  CHECK(found.out.values == expected.out.values);
  CHECK(of->tokens() == 150);
}

TEST_CASE("a fork goes its own way") {
  auto const it = small_engine();
  auto const of = sequence_of(*it, 150);
  auto const before = answers(*it, *of);
  auto const fork = of->fork();
  CHECK(answers(*it, *fork) == before);
  for (int layer = 0; layer < 2; ++layer)
    fork->append(layer, stream().keys(layer, 150, 100), stream().values(layer, 150, 100), here);
  CHECK(fork->tokens() == 250);
  CHECK(of->tokens() == 150);
  CHECK(answers(*it, *of) == before);
  CHECK(answers(*it, *fork) == answers(*it, *sequence_of(*it, 250)));
}

TEST_CASE("tokens are cut and dropped as the cache does it") {
  auto const it = small_engine();
  cache_type cache(made(), sizes());
  auto const of = sequence_of(*it, 250);
  auto plain = test::sequence_of(cache, stream(), 250);
  of->drop(1 + 64, 64);
  cache.drop(plain, 1 + 64, 64);
  CHECK(of->tokens() == 186);
  CHECK(answers(*it, *of) == answers(cache, plain));
  of->truncate(100);
  cache.truncate(plain, 100);
  CHECK(of->tokens() == 100);
  CHECK(answers(*it, *of) == answers(cache, plain));
  CHECK(test::error_of([&] { of->truncate(101); }).code == errc::bad_value);
  CHECK(test::error_of([&] { of->drop(0, 64); }).code == errc::bad_value);
}

TEST_CASE("a saved sequence answers the same when it is loaded, and goes on the same") {
  test::temporary_folder const folder;
  auto const it = small_engine(), another = small_engine();
  auto const of = sequence_of(*it, 150);
  of->save(folder / "tokens.kvs");
  auto const loaded = another->load(folder / "tokens.kvs");
  CHECK(loaded->tokens() == 150);
  CHECK(answers(*another, *loaded) == answers(*it, *of));
  for (int layer = 0; layer < 2; ++layer)
    loaded->append(layer, stream().keys(layer, 150, 50), stream().values(layer, 150, 50), here);
  CHECK(answers(*another, *loaded) == answers(*it, *sequence_of(*it, 200)));
  auto const found = test::error_of([&] { it->load(folder / "absent.kvs"); });
  CHECK(found.code == errc::bad_file);
  CHECK_THAT(found.text, test::says("absent.kvs"));
}

TEST_CASE("the sequences of a batch are answered as each alone") {
  auto const it = small_engine();
  std::vector<std::unique_ptr<engine_sequence>> sequences;
  std::vector<question> together, alone;
  std::vector<attend_request> batch;
  std::size_t const sizes_of[] = {5, 64, 200, 330};
  for (std::size_t i = 0; i < 4; ++i) {
    sequences.push_back(sequence_of(*it, sizes_of[i]));
    together.emplace_back(1 + i, i);
    alone.emplace_back(1 + i, i);
  }
  for (std::size_t i = 0; i < 4; ++i) {
    attend_options const options{.window = 50 * i};
    batch.push_back(together[i].to(*sequences[i], options));
    attend_request const one = alone[i].to(*sequences[i], options);
    it->attend(1, {&one, 1}, here);
  }
  it->attend(1, batch, here);
  for (std::size_t i = 0; i < 4; ++i) CHECK(together[i].answer() == alone[i].answer());
  it->attend(0, {}, here);
}

TEST_CASE("a sequence of another engine, and none, are refused") {
  auto const it = small_engine(), another = small_engine();
  auto const other_kind = make_engine<backend>(test::small_artifact<spec<nuq<2>, nuq<2>>>(), sizes());
  auto const own = sequence_of(*it, 5), foreign = sequence_of(*another, 5), distant = sequence_of(*other_kind, 5);
  for (engine_sequence const* const wrong : {foreign.get(), distant.get(), static_cast<engine_sequence*>(nullptr)}) {
    question first, second;
    std::vector<attend_request> batch = {first.to(*own), second.to(*own)};
    batch[1].sequence = wrong;
    auto const found = test::error_of([&] { it->attend(0, batch, here); });
    CHECK(found.code == errc::bad_value);
    CHECK_THAT(found.text, test::says("the sequence is not one of this engine"));
    CHECK(first.answer() == question().answer());
  }
}

TEST_CASE("pages that are reserved are nobody else's") {
  auto const it = small_engine();
  std::size_t const all = it->free_blocks();
  CHECK(all == 2 * 1024 / 64);
  auto const of = it->open();
  of->reserve(1 + 3 * 64);
  CHECK(it->free_blocks() == all - 2 * 3);
  CHECK(test::error_of([&] { it->open()->reserve(1 + 14 * 64); }).code == errc::out_of_pages);
  CHECK(it->free_blocks() == all - 2 * 3);
}

TEST_CASE("what the cache refuses passes through") {
  auto const it = small_engine();
  auto const of = it->open();
  CHECK(test::error_of([&] { of->append(2, stream().keys(0, 0, 1), stream().values(0, 0, 1), here); }).code ==
        errc::bad_value);
  CHECK(test::error_of([&] { of->append(0, stream().keys(0, 0, 2), stream().values(0, 0, 1), here); }).code ==
        errc::bad_shape);
  auto const full = make_engine<backend>(made(), {.max_tokens = 64});
  CHECK(test::error_of([&] { sequence_of(*full, 200); }).code == errc::out_of_pages);
}

}  // namespace
}  // namespace kvquant
