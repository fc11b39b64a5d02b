#pragma once
/// \file
/// How the library is given threads: it starts none itself.

#include <concepts>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

namespace kvquant {

namespace detail {
struct any_task {  // stands for the caller's functor where the concept needs one to name
  void operator()(std::size_t task, int worker) const;
};
}  // namespace detail

/// `parallel_for(n, f)` calls `f(task, worker)` once for each task in [0, n) and returns when all are done; calls with
/// the same `worker` in [0, workers()) never overlap. An exception of a task reaches the caller after the others ended.
template <class E>
concept Executor = requires(E& executor, E const& constant, std::size_t tasks, detail::any_task f) {
  executor.parallel_for(tasks, f);
  { constant.workers() } -> std::convertible_to<int>;
};

/// Everything on the calling thread.
struct inline_executor {
  /// One after the other, in order.
  template <class F>
  void parallel_for(std::size_t tasks, F&& f) const {
    for (std::size_t task = 0; task < tasks; ++task) f(task, 0);
  }
  /// The caller's thread.
  static constexpr int workers() { return 1; }
};
static_assert(Executor<inline_executor>);

/// A non-owning handle to any executor, for code that is compiled once. The executor must outlive it.
class executor_ref {
 public:
  /// Of any executor but another handle.
  template <Executor E>
    requires(!std::same_as<std::remove_cvref_t<E>, executor_ref>)
  executor_ref(E& executor)
      : executor_(const_cast<void*>(static_cast<void const*>(std::addressof(executor)))),
        workers_(executor.workers()),
        run_([](void* self, std::size_t tasks, void* f, call_t call) {
          static_cast<E*>(self)->parallel_for(tasks,
                                              [f, call](std::size_t task, int worker) { call(f, task, worker); });
        }) {}

  /// Passes the call on.
  template <class F>
  void parallel_for(std::size_t tasks, F&& f) const {
    using functor = std::remove_reference_t<F>;
    run_(executor_, tasks, const_cast<void*>(static_cast<void const*>(std::addressof(f))),
         [](void* functor_pointer, std::size_t task, int worker) {
           (*static_cast<functor*>(functor_pointer))(task, worker);
         });
  }
  /// Of the executor when the handle was made.
  int workers() const { return workers_; }

 private:
  using call_t = void (*)(void*, std::size_t, int);
  void* executor_;
  int workers_;
  void (*run_)(void*, std::size_t, void*, call_t);
};
static_assert(Executor<executor_ref>);

}  // namespace kvquant
