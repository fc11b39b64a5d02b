#pragma once
/// \file
/// The kernels of appending: tokens come in, are sealed, and stay exact.

#include <cmath>

#include "backends/cuda/agent/radix_select.cuh"
#include "backends/cuda/agent/seal_agent.cuh"
#include "backends/cuda/kernel/seal_params.hpp"
#include "kvquant/cache/storable.hpp"

namespace kvquant::cuda {

/// A block for every row.
template <class T>
__global__ void __launch_bounds__(seal_threads) store_rows_kernel(__grid_constant__ incoming_rows<T> const it) {
  std::size_t const row = blockIdx.x, to = row * it.channels;
  bool storable = true;
  for (std::uint32_t channel = threadIdx.x; channel < it.channels; channel += seal_threads) {
    T const k = it.k[row * it.k_stride + channel], v = it.v[row * it.v_stride + channel];
    storable &= fabsf(detail::loaded(k)) <= largest_half && fabsf(detail::loaded(v)) <= largest_half;
    it.to_k[to + channel] = detail::stored(k).bits;
    it.to_v[to + channel] = detail::stored(v).bits;
  }
  if (!storable) atomicMin(it.refused, blockIdx.x);
}

/// Binary16 bits as numbers that are in the same order, and back.
__device__ inline std::uint16_t ordered(std::uint16_t bits) {
  return static_cast<std::uint16_t>(bits & 0x8000u ? ~bits : bits | 0x8000u);
}
__device__ inline half from_ordered(std::uint16_t it) {
  return {static_cast<std::uint16_t>(it & 0x8000u ? it & 0x7fffu : ~it)};
}

/// A block for every row that is sealed.
__global__ void __launch_bounds__(seal_threads) token_ranges_kernel(__grid_constant__ range_params const it) {
  __shared__ radix_select::storage storage;
  radix_select select(storage);
  std::uint16_t const* const token = it.rows.v(blockIdx.x);
  auto const key = [&](int channel) { return ordered(token[channel]); };
  int const channels = static_cast<int>(it.rows.channels);
  auto const lower = select.nth_largest<std::uint16_t>(channels, it.rows.channels - it.per_side, selected::value, key);
  auto const upper = select.nth_largest<std::uint16_t>(channels, it.per_side + 1, selected::value, key);
  if (threadIdx.x == 0)
    it.ranges[blockIdx.x] = make_range(to_float(from_ordered(lower)), to_float(from_ordered(upper)));
}

/// A block for every page (x) and KV head (y).
template <int Bits>
__global__ void __launch_bounds__(seal_threads) seal_kernel(__grid_constant__ seal_params<Bits> const params) {
  extern __shared__ __align__(16) std::byte rest[];
  __shared__ typename seal_agent<Bits>::storage storage;
  seal_agent<Bits>(params, storage, rest).run();
}

/// A thread for every channel of each side (y). It takes its rows in order, so that it may move them within the tail.
__global__ void __launch_bounds__(seal_threads) settle_kernel(__grid_constant__ settle_params const it) {
  std::uint32_t const channel = blockIdx.x * seal_threads + threadIdx.x, channels = it.rows.channels;
  if (channel >= channels) return;
  bool const is_key = blockIdx.y == 0;
  std::uint16_t const* const from = is_key ? it.from_k : it.from_v;
  std::uint16_t *const sinks = is_key ? it.sink_k : it.sink_v, *const tail = is_key ? it.tail_k : it.tail_v;
  for (std::size_t row = 0; row < it.to_sinks; ++row) sinks[row * channels + channel] = from[row * channels + channel];
  for (std::uint32_t row = it.gone > 0 ? 0 : it.rows.tail; row < it.tail; ++row) {
    std::uint16_t const* const source = is_key ? it.rows.k(row + it.gone) : it.rows.v(row + it.gone);
    tail[std::size_t{row} * channels + channel] = source[channel];
  }
}

}  // namespace kvquant::cuda
