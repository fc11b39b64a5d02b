#pragma once
/// \file
/// How a backend's choices are made: a policy is a plain value, its selector an empty functor.

#include <concepts>
#include <cstddef>
#include <type_traits>

#include "kvquant/quantize/spec.hpp"

namespace kvquant {

/// What a policy may depend on. Not on the threads, and not on what else is in a batch: results must not either.
struct policy_query {
  model_shape const& shape;  ///< of the artifact's model
  int k_bits, v_bits;        ///< of a code
  bool sparse;               ///< pages have slots
  std::size_t queries;       ///< rows of one call
};

/// `P{}(query)` gives a policy, a trivially copyable value; the selector itself holds nothing.
template <class P>
concept PolicySelector = std::is_empty_v<P> && std::default_initializable<P> &&
    requires(P const& p, policy_query const& query) {
  p(query);
  requires std::is_trivially_copyable_v<decltype(p(query))>;
};

}  // namespace kvquant
