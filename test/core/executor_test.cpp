#include "kvquant/core/executor.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace kvquant;

using calls = std::vector<std::pair<std::size_t, int>>;  // (task, worker)

/// Two workers that take turns, from the last task to the first: nothing like the inline one.
class backwards_executor {
 public:
  template <class F>
  void parallel_for(std::size_t tasks, F&& f) {
    ++loops_;
    for (std::size_t task = tasks; task-- > 0;) f(task, static_cast<int>(task % 2));
  }
  int workers() const { return 2; }
  int loops() const { return loops_; }

 private:
  int loops_ = 0;
};
static_assert(Executor<backwards_executor>);

template <class E>
calls calls_of(E& executor, std::size_t tasks) {
  calls seen;
  executor.parallel_for(tasks, [&](std::size_t task, int worker) { seen.emplace_back(task, worker); });
  return seen;
}

struct counting_functor {
  int count = 0;
  void operator()(std::size_t, int) { ++count; }
};

struct call_through_const {
  int* count;
  void operator()(std::size_t, int) { *count += 100; }
  void operator()(std::size_t, int) const { ++*count; }
};

}  // namespace

TEST_CASE("the inline executor runs the tasks in order as worker 0", "[core]") {
  inline_executor const executor;
  CHECK(calls_of(executor, 4) == calls{{0, 0}, {1, 0}, {2, 0}, {3, 0}});
  CHECK(calls_of(executor, 0).empty());
  STATIC_REQUIRE(inline_executor::workers() == 1);
}

TEST_CASE("a handle runs tasks as its executor does", "[core]") {
  inline_executor const in_order;
  executor_ref const handle(in_order);
  CHECK(handle.workers() == 1);
  CHECK(calls_of(handle, 3) == calls_of(in_order, 3));

  backwards_executor backwards;
  executor_ref const other(backwards);
  CHECK(other.workers() == 2);
  CHECK(calls_of(other, 3) == calls{{2, 0}, {1, 1}, {0, 0}});
  CHECK(calls_of(other, 0).empty());
  CHECK(backwards.loops() == 2);
}

TEST_CASE("copies of a handle share the executor", "[core]") {
  backwards_executor backwards;
  executor_ref const handle(backwards);
  executor_ref copy = handle;
  executor_ref moved = std::move(copy);
  CHECK(calls_of(handle, 5) == calls_of(moved, 5));
  CHECK(backwards.loops() == 2);
}

TEST_CASE("a handle on a handle is a copy, so no chain of references can dangle", "[core]") {
  backwards_executor backwards;
  executor_ref outer = [&] {
    executor_ref inner(backwards);
    return executor_ref(inner);
  }();
  CHECK(calls_of(outer, 2) == calls{{1, 1}, {0, 0}});
}

TEST_CASE("functors are called where they are: changed, not copied, and const ones as const", "[core]") {
  inline_executor const executor;
  executor_ref const handle(executor);
  counting_functor counter;
  handle.parallel_for(5, counter);
  CHECK(counter.count == 5);

  int sum = 0;
  handle.parallel_for(3, [&, owned = std::make_unique<int>(7)](std::size_t, int) { sum += *owned; });
  CHECK(sum == 21);

  int count = 0;
  call_through_const const constant{&count};
  handle.parallel_for(2, constant);
  CHECK(count == 2);
}

TEST_CASE("a task may run tasks of its own", "[core]") {
  inline_executor const executor;
  executor_ref const handle(executor);
  calls seen;
  handle.parallel_for(2, [&](std::size_t outer, int) {
    handle.parallel_for(2, [&](std::size_t inner, int worker) { seen.emplace_back(10 * outer + inner, worker); });
  });
  CHECK(seen == calls{{0, 0}, {1, 0}, {10, 0}, {11, 0}});
}

TEST_CASE("an exception of a task reaches the caller as it was thrown", "[core]") {
  inline_executor const executor;
  executor_ref const handle(executor);
  std::size_t ran = 0;
  auto const failing = [&](std::size_t task, int) {
    ++ran;
    if (task == 2) throw std::out_of_range("task 2");
  };
  CHECK_THROWS_AS(handle.parallel_for(4, failing), std::out_of_range);
  CHECK_THROWS_WITH(executor.parallel_for(4, failing), "task 2");
  CHECK(ran >= 6);  // up to the failing one at least, both times
  CHECK(calls_of(handle, 1).size() == 1);
}

TEST_CASE("what lacks a member is no executor", "[core]") {
  struct without_workers {
    void parallel_for(std::size_t, detail::any_task);
  };
  struct without_loop {
    int workers() const;
  };
  STATIC_REQUIRE_FALSE(Executor<without_workers>);
  STATIC_REQUIRE_FALSE(Executor<without_loop>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<executor_ref, without_workers&>);
}
