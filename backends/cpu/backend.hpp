#pragma once
/// \file
/// The CPU backend: decode attention straight from pages, by the fastest instructions that the machine has.

#include <string_view>

#include "backends/cpu/attention.hpp"
#include "backends/cpu/tuning.hpp"
#include "kvquant/attend/backend.hpp"

namespace kvquant::cpu {

/// The CPU backend, by the instructions that `chosen_isa` names: in integers (`cpu`) or in floats (`cpu-float`).
template <arithmetic Arithmetic>
struct backend_in {
  ///@{
  /// As `kvquant::Backend` asks.
  static constexpr std::string_view name = Arithmetic == arithmetic::integer ? "cpu" : "cpu-float";
  template <PackedSpec S>
  using page_layout = cpu::page_layout<S>;
  template <PackedSpec S>
  using attention = cpu::attention<S, Arithmetic>;
  using policy_selector = cpu::policy_selector;
  static support supports(artifact_info const& info) { return cpu::supports(info, Arithmetic); }
  ///@}
};

/// Codes are multiplied as integers: within about 1 % of the exact result over the same pages.
using backend = backend_in<arithmetic::integer>;
/// The same pages in floats, for what has to be exact.
using float_backend = backend_in<arithmetic::floating>;
static_assert(Backend<backend> && Backend<float_backend>);

}  // namespace kvquant::cpu
