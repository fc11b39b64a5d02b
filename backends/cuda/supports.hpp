#pragma once
/// \file
/// What the CUDA backend asks of a model, of its datatypes, and of the machine.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "backends/cuda/fragment_layout.hpp"
#include "backends/cuda/launch/block_shape.hpp"
#include "backends/cuda/slab_shape.hpp"
#include "kvquant/attend/backend.hpp"
#include "kvquant/rope/rope.hpp"

namespace kvquant::cuda {

/// Why there is no device, or nothing if there is one. Asks once.
inline std::string const& missing_device() {
  static std::string const missing = [] {
    int devices = 0;
    cudaError_t const code = cudaGetDeviceCount(&devices);
    if (code != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return text("a CUDA device (", cudaGetErrorString(code), ")");
    }
    return devices > 0 ? std::string() : std::string("a CUDA device, there is none");
  }();
  return missing;
}

/// What cannot be done with an artifact's model and datatypes, whatever the machine.
inline support supports_model(artifact_info const& info) {
  if (info.keys != key_space::pre_rope) return {"keys quantized after RoPE, expected keys before RoPE"};
  if (std::find(head_dims.begin(), head_dims.end(), info.shape.head_dim) == head_dims.end())
    return {text("head_dim ", info.shape.head_dim, ", expected 64, 80, 96, 128 or 256")};
  if (!info.shape.local.layers.empty()) return {"layers with a window and RoPE of their own"};
  rope const rotation(info.shape.rope, info.shape.head_dim);
  if (rotation.pairing() == rope_pairing::half_split && rotation.rotary_dim() % 4 != 0)
    return {text("rotary_dim ", rotation.rotary_dim(), " in halves, expected a multiple of 4")};
  bool served = false;
  for_each_type(specs{}, [&]<class S>(std::type_identity<S>) { served |= FragmentSpec<S> && S::name() == info.spec; });
  if (info.own_levels) return {"levels of a channel's own, expected those of eight channels of a head"};
  if (!served)
    return {
        text("pages of ", info.spec, ", expected as many bits for keys as for values, 2 to 4, or f16, or adaptive")};
  return {};
}

/// The most shared memory that an artifact's kernels may need of a block.
inline std::uint32_t needed_shared_bytes(artifact_info const& info) {
  attend_config config{16, info.shape.head_dim, false};
  for_each_type(specs{}, [&]<class S>(std::type_identity<S>) {
    if constexpr (FragmentSpec<S>)
      if (S::name() == info.spec) config.bits = code_bits_of<S>;
  });
  config.sparse = config.scaled() && info.outlier_fraction_k + info.outlier_fraction_v > 0;
  return least_shared_bytes(config, query_columns);
}

inline support supports(artifact_info const& info) {
  if (support const it = supports_model(info); !it) return it;
  if (!missing_device().empty()) return {missing_device()};
  if (device_attribute(cudaDevAttrConcurrentManagedAccess) == 0)
    return {"managed memory that the host and the device use at once"};
  auto const shared = static_cast<std::uint32_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  if (needed_shared_bytes(info) > shared)
    return {text(info.spec, " with head_dim ", info.shape.head_dim, " on a device with ", shared,
                 " bytes of shared memory for a block, expected ", needed_shared_bytes(info))};
  return {};
}

}  // namespace kvquant::cuda
