#pragma once
/// \file
/// How the generic backend cuts its work.

#include <cstddef>

#include "kvquant/attend/policy.hpp"

namespace kvquant::cpu::generic {

struct attention_policy {
  std::size_t rows_per_block;   ///< queries that one decoded tile serves
  std::size_t tiles_per_split;  ///< tiles that one task reads; splits are merged in order
};

struct policy_selector {
  constexpr attention_policy operator()(policy_query const&) const { return {64, 16}; }
};
static_assert(PolicySelector<policy_selector>);

}  // namespace kvquant::cpu::generic
