#include <algorithm>
#include <catch2/catch.hpp>
#include <cstddef>
#include <functional>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "backends/cpu/generic/attention.hpp"
#include "backends/cpu/thread_pool.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "test/support/small_cache.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;

using attention_type = cpu::generic::attention<small_cache::spec_type>;

constexpr std::size_t threads = 4;

void on_threads(std::function<void(std::size_t)> const& f) {
  std::vector<std::thread> running;
  for (std::size_t thread = 0; thread < threads; ++thread) running.emplace_back(f, thread);
  for (std::thread& it : running) it.join();
}

/// What a thread was left with; Catch2's checks are for the main thread alone.
struct outcome {
  std::vector<layer_contents> contents, of_fork;
  std::vector<float> attended;
  friend bool operator==(outcome const&, outcome const&) = default;
};

void attend(small_cache const& cache, sequence const& of, attention_type const& attention, std::vector<float>& results,
            executor_ref executor) {
  auto const q = random_keys(2, 64, 5);
  float_matrix out(2, 64);
  for (int layer = 0; layer < 2; ++layer) {
    attend_args const args{.cache = cache.view(of, layer), .q = q.view(), .out = out.view()};
    attention(layer, {&args, 1}, executor);
    results.insert(results.end(), out.values.begin(), out.values.end());
  }
}

/// A sequence that starts as a copy of `common`, goes another way for every `seed`, and is closed at the end.
outcome live(small_cache& cache, sequence const& common, attention_type const& attention, std::size_t seed,
             executor_ref executor) {
  outcome seen;
  sequence it = cache.fork(common);
  for (std::size_t round = 0; round < 4; ++round) {
    cache.truncate(it, 5 + 64 + 11 * seed + round);  // into a page of the common start
    append_tokens(cache, it, other_stream(), 20 * seed, 90, executor);
    attend(cache, it, attention, seen.attended, executor);
    sequence copy = cache.fork(it);
    cache.truncate(copy, 5 + 70);
    append_tokens(cache, copy, small_stream(), 30 * seed + round, 60, executor);
    attend(cache, copy, attention, seen.attended, executor);
    seen.of_fork = contents_of(cache, copy);
    cache.reserve(it, 64);
    cache.drop(it, 5, 64);
    append_tokens(cache, it, small_stream(), 40 * seed, 64, executor);
  }
  seen.contents = contents_of(cache, it);
  return seen;
}

TEST_CASE("sequences of one cache used from several threads are what they are alone", "[threads]") {
  small_cache cache(64);
  attention_type const attention(small_artifact<small_cache::spec_type>());
  std::optional<sequence> common = sequence_of(cache, small_stream(), 5 + 2 * 64 + 10);
  std::vector<outcome> alone, together(threads);
  inline_executor here;
  for (std::size_t seed = 0; seed < threads; ++seed) alone.push_back(live(cache, *common, attention, seed, here));
  for (int round = 0; round < 5; ++round) {
    on_threads([&](std::size_t thread) {
      inline_executor own;
      together[thread] = live(cache, *common, attention, thread, own);
    });
    CHECK((together == alone));
    CHECK(cache.free_pages() == 64 - 2);
  }
  common.reset();
  CHECK(cache.free_pages() == 64);
}

TEST_CASE("each thread may bring a pool of its own", "[threads]") {
  small_cache cache(64);
  attention_type const attention(small_artifact<small_cache::spec_type>());
  sequence const common = sequence_of(cache, small_stream(), 5 + 2 * 64 + 10);
  inline_executor here;
  outcome const alone = live(cache, common, attention, 1, here);
  std::vector<outcome> together(threads);
  on_threads([&](std::size_t thread) {
    cpu::thread_pool own(2);
    together[thread] = live(cache, common, attention, 1, own);
  });
  CHECK(std::all_of(together.begin(), together.end(), [&](outcome const& it) { return it == alone; }));
}

TEST_CASE("threads that seal a shared page again, all at once, leave each its own", "[threads]") {
  small_cache cache(8);
  std::vector<sequence> sequences;
  for (int round = 0; round < 20; ++round) {
    sequences.push_back(sequence_of(cache, small_stream(), 5 + 64));
    auto const before = contents_of(cache, sequences[0]);
    while (sequences.size() < threads) sequences.push_back(cache.fork(sequences[0]));
    for (sequence& it : sequences) cache.truncate(it, 5 + 40);
    std::vector<std::vector<layer_contents>> after(threads);
    on_threads([&](std::size_t thread) {
      append_tokens(cache, sequences[thread], small_stream(), 45, 24);
      after[thread] = contents_of(cache, sequences[thread]);
    });
    REQUIRE(std::all_of(after.begin(), after.end(), [&](auto const& it) { return it == before; }));
    sequences.clear();
    REQUIRE(cache.free_pages() == 8);
  }
}

TEST_CASE("when threads ask for more pages than there are, some are refused and none are lost", "[threads]") {
  small_cache cache(6);
  for (int round = 0; round < 20; ++round) {
    std::vector<int> refused(threads);
    on_threads([&](std::size_t thread) {
      sequence it = cache.open();
      try {
        for (std::size_t token = 0; token < 5 + 3 * 64; token += 8) append_tokens(cache, it, small_stream(), token, 8);
      } catch (error const& e) {
        refused[thread] = e.code == errc::out_of_pages ? 1 : 2;
      }
    });
    REQUIRE(*std::max_element(refused.begin(), refused.end()) < 2);
    REQUIRE(cache.free_blocks() == 12);
  }
}

}  // namespace
