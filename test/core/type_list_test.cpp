#include "kvquant/core/type_list.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

namespace {

using namespace kvquant;

template <int N>
struct number {
  static constexpr int value = N;
};

using numbers = type_list<number<3>, number<1>, number<4>, number<1>, number<5>>;

/// What `visit_first` tried and what it visited when looking for a type of value `wanted`.
struct visit {
  bool found;
  std::vector<int> tried, visited;
};

template <class List>
visit visit_value(int wanted) {
  visit result{};
  result.found = visit_first(
      List{},
      [&]<class T>(std::type_identity<T>) {
        result.tried.push_back(T::value);
        return T::value == wanted;
      },
      [&]<class T>(std::type_identity<T>) { result.visited.push_back(T::value); });
  return result;
}

}  // namespace

TEST_CASE("a list counts its types, equal ones as well", "[core]") {
  STATIC_REQUIRE(type_list<>::size == 0);
  STATIC_REQUIRE(type_list<int>::size == 1);
  STATIC_REQUIRE(numbers::size == 5);
}

TEST_CASE("the first type that matches is visited, and none is tried after it", "[core]") {
  visit const result = visit_value<numbers>(1);
  CHECK(result.found);
  CHECK(result.tried == std::vector{3, 1});
  CHECK(result.visited == std::vector{1});
  CHECK(visit_value<numbers>(5).tried == std::vector{3, 1, 4, 1, 5});
}

TEST_CASE("where no type matches all are tried and none is visited", "[core]") {
  visit const result = visit_value<numbers>(9);
  CHECK_FALSE(result.found);
  CHECK(result.tried == std::vector{3, 1, 4, 1, 5});
  CHECK(result.visited.empty());
  CHECK_FALSE(visit_value<type_list<>>(9).found);
}

TEST_CASE("types of any kind can be listed, those that cannot be made included", "[core]") {
  struct incomplete;
  using kinds = type_list<void, int&, incomplete, int[3]>;
  int visited = 0;
  bool const found = visit_first(
      kinds{}, []<class T>(std::type_identity<T>) { return std::is_reference_v<T>; },
      [&]<class T>(std::type_identity<T>) { visited += std::is_same_v<T, int&>; });
  CHECK(found);
  CHECK(visited == 1);
}

TEST_CASE("every type is visited in order", "[core]") {
  std::vector<int> visited;
  for_each_type(numbers{}, [&]<class T>(std::type_identity<T>) { visited.push_back(T::value); });
  CHECK(visited == std::vector{3, 1, 4, 1, 5});
  for_each_type(type_list<>{}, [&](auto) { visited.clear(); });
  CHECK(visited.size() == 5);
}
