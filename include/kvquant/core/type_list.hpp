#pragma once
/// \file
/// A list of types, and the fold that turns a run-time choice into one of them.

#include <cstddef>
#include <type_traits>

namespace kvquant {

/// Types as a value, to be folded over.
template <class... Types>
struct type_list {
  /// How many.
  static constexpr std::size_t size = sizeof...(Types);
};

/// Calls `f(std::type_identity<T>{})` for the first `T` for which `matches(std::type_identity<T>{})` is true.
/// Returns whether there was one.
template <class... Types, class Matches, class F>
bool visit_first(type_list<Types...>, Matches&& matches, F&& f) {
  return ((matches(std::type_identity<Types>{}) ? (f(std::type_identity<Types>{}), true) : false) || ...);
}

/// Calls `f(std::type_identity<T>{})` for each `T`, in order.
template <class... Types, class F>
void for_each_type(type_list<Types...>, F&& f) {
  (f(std::type_identity<Types>{}), ...);
}

}  // namespace kvquant
