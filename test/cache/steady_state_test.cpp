/// \file
/// What a running model does again and again allocates nothing. A program of its own, because `counting_new.cpp`
/// replaces operator new.

#include <catch2/catch.hpp>
#include <cstddef>
#include <memory>
#include <vector>

#include "backends/cpu/generic/attention.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/core/scratch_pool.hpp"
#include "test/support/counting_new.hpp"
#include "test/support/counting_resource.hpp"
#include "test/support/small_cache.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using S = spec<nuq<3>, nuq<3>>;
using cache_type = row_major_cache<S>;

constexpr std::size_t tokens = 400;

/// Three workers that take turns on the calling thread: each always has the same tasks.
struct taking_turns {
  template <class F>
  void parallel_for(std::size_t tasks, F&& f) const {
    for (std::size_t task = 0; task < tasks; ++task) f(task, static_cast<int>(task % 3));
  }
  static int workers() { return 3; }
};
static_assert(Executor<taking_turns>);

/// Calls of operator new while `f` runs.
template <class F>
std::size_t allocations_of(F&& f) {
  std::size_t const before = allocations();
  f();
  return allocations() - before;
}

struct query_rows {
  float_matrix q = random_keys(1, 64, 5), out{1, 64};

  void attend(cache_type const& cache, sequence const& of, cpu::generic::attention<S> const& attention,
              executor_ref executor) {
    for (int layer = 0; layer < 2; ++layer) {
      attend_args const args{.cache = cache.view(of, layer), .q = q.view(), .out = out.view()};
      attention(layer, {&args, 1}, executor);
    }
  }
};

}  // namespace

TEST_CASE("operator new is counted", "[cache]") {
  // What is seen from outside cannot be left out by the compiler.
  std::vector<int> numbers;
  std::unique_ptr<counting_resource> object;
  CHECK(allocations_of([&] { numbers.resize(10); }) == 1);
  CHECK(allocations_of([&] { object = std::make_unique<counting_resource>(); }) == 1);
}

TEST_CASE("giving scratch back allocates nothing", "[cache]") {
  scratch_pool<int> pool;
  std::vector<scratch_pool<int>::lease> leases;
  for (int i = 0; i < 5; ++i) leases.push_back(pool.borrow());
  CHECK(allocations_of([&] { leases.clear(); }) == 0);
}

TEMPLATE_TEST_CASE("appending what a sequence was opened for allocates nothing", "[cache]", inline_executor,
                   taking_turns) {
  counting_resource memory;
  cache_type cache(small_artifact<S>(), {.max_tokens = 2 * tokens, .recent_pages = GENERATE(0, 1), .memory = &memory});
  TestType executor;
  {
    sequence warm_up = cache.open();  // the first pages make the quantizers' scratch
    append_tokens(cache, warm_up, small_stream(), 0, 200, executor);
  }
  sequence it = cache.open(tokens);
  std::size_t const from_resource = memory.allocations();
  CHECK(allocations_of([&] {
          for (std::size_t token = 0; token < tokens; ++token)
            append_tokens(cache, it, small_stream(), token, 1, executor);
        }) == 0);
  CHECK(memory.allocations() == from_resource);
  CHECK(cache.view(it, 0).sealed >= 5 * page_tokens);
}

TEST_CASE("cutting, sealing again and dropping allocate nothing", "[cache]") {
  cache_type cache(small_artifact<S>(), {.max_tokens = 2 * tokens});
  sequence it = sequence_of(cache, small_stream(), tokens);
  sequence const copy = cache.fork(it);
  CHECK(allocations_of([&] {
          for (std::size_t const cut : {300u, 200u, 100u}) {
            cache.truncate(it, cut);  // into a page that is shared the first time
            append_tokens(cache, it, small_stream(), cut, 100);
          }
          cache.drop(it, 1, page_tokens);
        }) == 0);
  CHECK(it.tokens() == 200 - page_tokens);
}

TEMPLATE_TEST_CASE("decoding allocates nothing once a sequence as long has been served", "[cache]", inline_executor,
                   taking_turns) {
  cache_type cache(small_artifact<S>(), {.max_tokens = 2 * tokens});
  cpu::generic::attention<S> const attention(small_artifact<S>());
  TestType executor;
  query_rows rows;
  auto const decode = [&](sequence& it) {
    for (std::size_t token = 0; token < tokens; ++token) {
      append_tokens(cache, it, small_stream(), token, 1, executor);
      rows.attend(cache, it, attention, executor);
    }
  };
  sequence first = cache.open(tokens);
  decode(first);
  sequence second = cache.open(tokens);
  CHECK(allocations_of([&] { decode(second); }) == 0);
  CHECK((contents_of(cache, second) == contents_of(cache, first)));
}
