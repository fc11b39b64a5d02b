#pragma once
/// \file
/// The CUDA backend: fused attention over pages in the order of tensor cores.

#include <string_view>

#include "backends/cuda/attention.hpp"
#include "backends/cuda/page_layout.hpp"
#include "backends/cuda/tuning.hpp"
#include "kvquant/attend/backend.hpp"

namespace kvquant::cuda {

/// Attention and sealing by CUDA kernels, on pages in managed memory.
struct backend {
  ///@{
  /// As `kvquant::Backend` asks.
  static constexpr std::string_view name = "cuda";
  template <PackedSpec S>
  using page_layout = cuda::page_layout<S>;
  template <PackedSpec S>
  using attention = cuda::attention<S>;
  using policy_selector = cuda::policy_selector;
  static support supports(artifact_info const& info) { return cuda::supports(info); }
  ///@}
};
static_assert(Backend<backend>);

}  // namespace kvquant::cuda
