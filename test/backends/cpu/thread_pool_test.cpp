#include "backends/cpu/thread_pool.hpp"

#include <atomic>
#include <catch2/catch.hpp>
#include <cstddef>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "kvquant/core/executor.hpp"

namespace {

using kvquant::cpu::thread_pool;

std::vector<std::size_t> first_numbers(std::size_t count) {
  std::vector<std::size_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), std::size_t{0});
  return numbers;
}

TEST_CASE("each task runs once", "[threads]") {
  int const workers = GENERATE(1, 2, 3, 8);
  std::size_t const tasks = GENERATE(as<std::size_t>(), 0u, 1u, 2u, 7u, 1000u);
  thread_pool pool(workers);
  REQUIRE(pool.workers() == workers);
  std::vector<std::size_t> ran(tasks, 0);  // unsynchronised: each task owns its element
  pool.parallel_for(tasks, [&](std::size_t task, int) { ran[task] += task + 1; });
  std::vector<std::size_t> expected = first_numbers(tasks);
  for (std::size_t& number : expected) ++number;
  CHECK(ran == expected);
}

TEST_CASE("calls of one worker never overlap, so that workers can own scratch space", "[threads]") {
  thread_pool pool(4);
  std::vector<std::size_t> sums(4, 0);  // unsynchronised on purpose
  pool.parallel_for(10000, [&](std::size_t task, int worker) { sums.at(static_cast<std::size_t>(worker)) += task; });
  CHECK(std::accumulate(sums.begin(), sums.end(), std::size_t{0}) == std::size_t{10000} * 9999 / 2);
}

TEST_CASE("what tasks wrote is seen after parallel_for, round after round", "[threads]") {
  thread_pool pool(3);
  std::vector<std::size_t> values = first_numbers(257);
  for (int round = 0; round < 500; ++round)
    pool.parallel_for(values.size(), [&](std::size_t task, int) { values[task] = values[task] * 3 + 1; });
  std::vector<std::size_t> expected = first_numbers(257);
  for (int round = 0; round < 500; ++round)
    for (std::size_t& value : expected) value = value * 3 + 1;
  CHECK(values == expected);
}

TEST_CASE("a task's exception reaches the caller after the other tasks ended, and the pool goes on", "[threads]") {
  thread_pool pool(GENERATE(1, 4));
  std::atomic<int> ended{0};
  auto const failing = [&](std::size_t task, int) {
    if (task == 17) throw std::runtime_error("task 17");
    ++ended;
  };
  REQUIRE_THROWS_WITH(pool.parallel_for(100, failing), "task 17");
  CHECK(ended == 99);
  pool.parallel_for(10, [&](std::size_t, int) { ++ended; });
  CHECK(ended == 109);
}

TEST_CASE("a pool without work starts and stops", "[threads]") {
  for (int i = 0; i < 50; ++i) {
    thread_pool const pool(4);
    CHECK(pool.workers() == 4);
  }
  CHECK(thread_pool(0).workers() >= 1);
}

TEST_CASE("executor_ref hands everything to its executor", "[threads]") {
  thread_pool pool(3);
  kvquant::executor_ref const handle(pool);
  CHECK(handle.workers() == 3);
  std::atomic<std::size_t> sum{0};
  handle.parallel_for(100, [&](std::size_t task, int worker) {
    if (worker >= 0 && worker < 3) sum += task;
  });
  CHECK(sum == 4950);
  // Move-only functors are passed by reference, never copied.
  handle.parallel_for(
      1, [&, owned = std::make_unique<int>(7)](std::size_t, int) { sum = static_cast<std::size_t>(*owned); });
  CHECK(sum == 7);
}

}  // namespace
