#pragma once
/// \file
/// The CPU backend: decode attention straight from pages, by the fastest instructions that the machine has.

#include <string_view>

#include "backends/cpu/attention.hpp"
#include "backends/cpu/tuning.hpp"
#include "kvquant/attend/backend.hpp"

namespace kvquant::cpu {

/// Codes are multiplied as integers: within 1 % of the exact result over the same pages.
struct backend {
  static constexpr std::string_view name = "cpu";
  template <PackedSpec S>
  using page_layout = cpu::page_layout<S>;
  template <PackedSpec S>
  using attention = cpu::attention<S, arithmetic::integer>;
  using policy_selector = cpu::policy_selector;
  static support supports(artifact_info const& info) { return cpu::supports(info); }
};
static_assert(Backend<backend>);

/// The same pages in floats, for what has to be exact.
struct float_backend {
  static constexpr std::string_view name = "cpu-float";
  template <PackedSpec S>
  using page_layout = cpu::page_layout<S>;
  template <PackedSpec S>
  using attention = cpu::attention<S, arithmetic::floating>;
  using policy_selector = cpu::policy_selector;
  static support supports(artifact_info const& info) { return cpu::supports(info); }
};
static_assert(Backend<float_backend>);

}  // namespace kvquant::cpu
