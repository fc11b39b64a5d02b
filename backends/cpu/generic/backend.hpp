#pragma once
/// \file
/// The generic CPU backend: any machine, any format, one plain path.

#include <string_view>

#include "backends/cpu/generic/attention.hpp"
#include "backends/cpu/generic/policy.hpp"
#include "backends/cpu/supports.hpp"
#include "kvquant/attend/backend.hpp"
#include "kvquant/cache/row_major_layout.hpp"

namespace kvquant::cpu::generic {

/// Every format and model, on any machine. Slow; what other backends are tried out against.
struct backend {
  ///@{
  /// As `kvquant::Backend` asks.
  static constexpr std::string_view name = "cpu-generic";
  template <PackedSpec S>
  using page_layout = row_major_layout<S>;
  template <PackedSpec S>
  using attention = generic::attention<S>;
  using policy_selector = generic::policy_selector;

  static support supports(artifact_info const& info) { return supports_model(info); }
  ///@}
};
static_assert(Backend<backend>);

}  // namespace kvquant::cpu::generic
