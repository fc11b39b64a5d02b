#include "adapters/ggml/crew.hpp"

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace kvquant::ggml {
namespace {

/// What ggml does: calls the operator on each of its threads, all of which come to a barrier after it.
template <class F>
void on_threads(crew& all, int count, F const& lead) {
  std::vector<std::thread> threads;
  for (int ith = 1; ith < count; ++ith) threads.emplace_back([&all, ith, count, &lead] { all.join(ith, count, lead); });
  all.join(0, count, lead);
  for (std::thread& it : threads) it.join();
}

TEST_CASE("a crew does every task once, by threads it was joined by") {
  crew all;
  int const threads = GENERATE(1, 2, 3, 5);
  std::size_t const tasks = GENERATE(as<std::size_t>(), 0, 1, 2, 100);
  std::vector<std::atomic<int>> done(tasks);
  std::atomic<int> strangers{0}, leaders{0};
  for (int operators = 0; operators < 20; ++operators)
    on_threads(all, threads, [&](executor_ref executor) noexcept {
      ++leaders;
      strangers += executor.workers() == threads ? 0 : 1;
      for (int round = 0; round < 5; ++round)
        executor.parallel_for(tasks, [&](std::size_t task, int worker) {
          ++done[task];
          strangers += worker >= 0 && worker < threads ? 0 : 1;
        });
    });
  CHECK(leaders == 20);
  CHECK(strangers == 0);
  CHECK(std::all_of(done.begin(), done.end(), [](int times) { return times == 100; }));
}

TEST_CASE("a crew's task that throws does so to the leader, after the others ended") {
  crew all;
  int const threads = GENERATE(1, 3);
  std::atomic<int> ended{0}, caught{0};
  std::string text;
  on_threads(all, threads, [&](executor_ref executor) noexcept {
    try {
      executor.parallel_for(50, [&](std::size_t task, int) {
        if (task % 10 == 3) throw std::runtime_error("task");
        ++ended;
      });
    } catch (std::runtime_error const& e) {
      text = e.what();
      caught = ended.load();
    }
    executor.parallel_for(7, [&](std::size_t, int) { ++ended; });  // and the crew goes on
  });
  CHECK(text == "task");
  CHECK(caught == 45);
  CHECK(ended == 52);
}

}  // namespace
}  // namespace kvquant::ggml
