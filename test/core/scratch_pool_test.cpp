#include "kvquant/core/scratch_pool.hpp"

#include <catch2/catch.hpp>
#include <set>
#include <utility>
#include <vector>

using namespace kvquant;

namespace {

/// Counts how many of it there are, and were made.
struct counted {
  static inline int alive = 0, made = 0;
  int value = 0;
  counted() { ++alive, ++made; }
  counted(counted const&) = delete;
  counted& operator=(counted const&) = delete;
  ~counted() { --alive; }
};

}  // namespace

TEST_CASE("what was given back is borrowed again, with what it holds", "[core]") {
  scratch_pool<std::vector<int>> pool;
  int const* memory = nullptr;
  {
    auto const it = pool.borrow();
    CHECK(it->empty());
    it->assign(100, 7);
    memory = it->data();
  }
  auto const again = pool.borrow();
  CHECK(*again == std::vector<int>(100, 7));
  CHECK(again->data() == memory);
}

TEST_CASE("as many are made as are borrowed at once", "[core]") {
  counted::made = 0;
  {
    scratch_pool<counted> pool;
    for (int round = 0; round < 3; ++round) {
      auto const a = pool.borrow(), b = pool.borrow();
      { auto const c = pool.borrow(); }
      auto const d = pool.borrow();
      CHECK(std::set{&*a, &*b, &*d}.size() == 3);
    }
    CHECK(counted::made == 3);
    CHECK(counted::alive == 3);
  }
  CHECK(counted::alive == 0);
}

TEST_CASE("a lease that was moved is given back once", "[core]") {
  counted::made = 0;
  scratch_pool<counted> pool;
  {
    auto first = pool.borrow();
    first->value = 5;
    auto const second = std::move(first);
    CHECK(second->value == 5);
    CHECK(pool.borrow()->value == 0);  // another: the first is still out
  }
  auto const a = pool.borrow(), b = pool.borrow();
  CHECK(a->value + b->value == 5);
  CHECK(counted::made == 2);
}
