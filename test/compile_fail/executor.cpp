#include <cstddef>

#include "kvquant/core/executor.hpp"

namespace {

struct whole {
  template <class F>
  void parallel_for(std::size_t, F&&) {}
  int workers() const { return 1; }
};

struct without_workers {
  template <class F>
  void parallel_for(std::size_t, F&&) {}
};

struct without_parallel_for {
  int workers() const { return 1; }
};

struct with_workers_of_another_type {
  template <class F>
  void parallel_for(std::size_t, F&&) {}
  void workers() const {}
};

struct with_mutable_workers {
  template <class F>
  void parallel_for(std::size_t, F&&) {}
  int workers() { return 1; }
};

template <kvquant::Executor E>
void run(E& executor) {
  executor.parallel_for(1, [](std::size_t, int) {});
}

}  // namespace

int main() {
  whole executor;
  run(executor);
  kvquant::executor_ref const handle(executor);
#if CASE == 1  // workers()
  without_workers it;
  run(it);
#elif CASE == 2  // parallel_for
  without_parallel_for it;
  run(it);
#elif CASE == 3  // workers()
  with_workers_of_another_type it;
  run(it);
#elif CASE == 4  // workers()
  with_mutable_workers it;
  run(it);
#elif CASE == 5  // executor_ref
  kvquant::executor_ref const temporary(whole{});
#endif
  return handle.workers() - 1;
}
