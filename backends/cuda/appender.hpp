#pragma once
/// \file
/// Stores and seals what is appended on a CUDA device.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "backends/cuda/device_quantizers.hpp"
#include "backends/cuda/error.hpp"
#include "backends/cuda/fragment_layout.hpp"
#include "backends/cuda/launch/seal.hpp"
#include "backends/cuda/memory.hpp"
#include "kvquant/cache/appender.hpp"

namespace kvquant::cuda {

/// Whether the device reads and writes what lies there, and the host need not.
inline bool is_on_device(void const* it) {
  cudaPointerAttributes of{};
  check(cudaPointerGetAttributes(&of, it), "cudaPointerGetAttributes");
  return of.type == cudaMemoryTypeDevice || of.type == cudaMemoryTypeManaged;
}

/// A few kernels for a whole prompt as for a token, on the cache's stream. Tokens may come from the host or, if keys
/// and values both do, from the device; what the host cannot read is checked by the kernels, and `wait` throws
/// `bad_value`.
template <FragmentSpec S>
class appender {
 public:
  appender(artifact<S> const& it, appender_options const& options)
      : options_(options), queue_(static_cast<cudaStream_t>(options.queue)) {
    if (queue_ == nullptr) queue_ = own_.emplace().get();
    for (int layer = 0; layer < it.info.shape.layers; ++layer) layers_.emplace_back(it, layer, options);
  }

  std::size_t layers() const { return layers_.size(); }
  page_sealer<S> const& quantizers(int layer) const { return layers_.at(static_cast<std::size_t>(layer)).quantizers; }
  std::size_t table_bytes() const {
    std::size_t bytes = 0;
    for (layer_tables const& it : layers_)
      bytes += it.quantizers.table_bytes() + it.k_sensitivity.bytes() + it.v_sensitivity.bytes() + it.on_device.bytes();
    return bytes;
  }

  /// Of formats that are `by_channel`, of what has been asked for until now.
  clamp_counts clamps() const {
    if constexpr (!widths_differ) return {};
    std::lock_guard const lock(mutex_);
    cuda::check(cudaStreamSynchronize(queue_), "cudaStreamSynchronize");
    clamp_counts all = counted_;
    all.clamped_keys = *clamped_keys_.get();
    all.clamped_values = *clamped_values_.get();
    return all;
  }

  template <TokenElement T>
  void check(view2d<T const> k, view2d<T const> v) const {
    if (k.rows == 0) return;
    bool const on_device = is_on_device(k.data);
    require(on_device == is_on_device(v.data), errc::bad_value,
            "append: keys or values are on the device and the others are not, expected both or none");
    if (on_device) return;
    require_storable_rows(k, "keys");
    require_storable_rows(v, "values");
  }

  template <TokenElement T>
  void append(append_work<T> const& work, executor_ref) {
    if (work.k.rows == 0) return;
    std::lock_guard const lock(mutex_);
    appended_rows const rows = bring(work);
    if (!work.blocks.empty()) seal(work, rows);
    settle(work, rows);
    if (own_) own_->wait();
  }

  void wait() const {
    cuda::check(cudaStreamSynchronize(queue_), "cudaStreamSynchronize");
    std::uint32_t const row = std::exchange(*refused_.get(), none_refused);
    require(row == none_refused, errc::bad_value, "append: token ", row,
            " of those on the device has a key or a value that is not finite or above 65504 in size");
  }

 private:
  static constexpr int bits = code_bits_of<S>;
  static constexpr bool widths_differ = bits == by_width, has_ranges = S::value_format::scaled && !widths_differ;

  struct layer_tables {
    page_sealer<S> quantizers;
    device_array<float> k_sensitivity, v_sensitivity;  // [kv_channels]
    device_quantizers<S> on_device;

    layer_tables(artifact<S> const& it, int layer, appender_options const& options)
        : quantizers(it, layer, options.geometry),
          k_sensitivity(quantizers.key_sensitivity()),
          v_sensitivity(quantizers.value_sensitivity()),
          on_device(quantizers, options.kv_heads) {}
  };

  static constexpr std::uint32_t none_refused = std::numeric_limits<std::uint32_t>::max();

  static std::uint16_t* bits_of(half* it) { return reinterpret_cast<std::uint16_t*>(it); }
  std::size_t channels() const { return options_.kv_channels(); }

  /// The new tokens as binary16 on the device.
  template <TokenElement T>
  appended_rows bring(append_work<T> const& work) {
    std::size_t const size = work.k.rows * channels();
    staged_.reserve(2 * size);
    half *const k = staged_.data(), *const v = k + size;
    if (is_on_device(work.k.data)) {
      launch_store_rows<T>({work.k.data, work.v.data, work.k.stride, work.v.stride,
                            static_cast<std::uint32_t>(channels()), bits_of(k), bits_of(v), refused_.get()},
                           static_cast<std::uint32_t>(work.k.rows), queue_);
    } else {
      host_.clear();
      for (view2d<T const> const& side : {work.k, work.v})
        for (std::size_t row = 0; row < side.rows; ++row)
          for (T const x : side.row(row)) host_.push_back(detail::stored(x));
      staged_.upload(host_, queue_);
    }
    std::size_t const of_sinks = work.to_sinks * channels();
    return {bits_of(work.tail_k),
            bits_of(work.tail_v),
            bits_of(k + of_sinks),
            bits_of(v + of_sinks),
            static_cast<std::uint32_t>(work.tail),
            static_cast<std::uint32_t>(channels())};
  }

  template <TokenElement T>
  void seal(append_work<T> const& work, appended_rows const& rows) {
    layer_tables const& tables = layers_[static_cast<std::size_t>(work.layer)];
    page_geometry const& geometry = options_.geometry;
    auto const count = static_cast<std::uint32_t>(work.sealed_rows());
    if constexpr (has_ranges) {
      ranges_.reserve(count);
      launch_token_ranges({rows, tables.on_device.per_side(), ranges_.data()}, count, queue_);
    }
    blocks_.upload(work.blocks, queue_);
    seal_params<bits> params{.rows = rows,
                             .levels = {},
                             .key_maps = nullptr,
                             .k_sensitivity = tables.k_sensitivity.data(),
                             .v_sensitivity = tables.v_sensitivity.data(),
                             .ranges = ranges_.data(),
                             .channels = channels_of(geometry),
                             .head_dim = static_cast<int>(geometry.head_dim),
                             .k_slots = static_cast<std::uint32_t>(geometry.k_slots),
                             .v_slots = static_cast<std::uint32_t>(geometry.v_slots),
                             .offsets = fragment_layout<S>::offsets(geometry),
                             .page_bytes = options_.page_bytes,
                             .blocks = blocks_.data(),
                             .slab = work.slab,
                             .before = work.before,
                             .reused = static_cast<std::uint32_t>(work.reused)};
    tables.on_device.fill(params);
    if constexpr (widths_differ) {
      params.levels.k.clamped = clamped_keys_.get();
      params.levels.v.clamped = clamped_values_.get();
      if (params.levels.k.seen != nullptr) counted_.keys += count * channels();
      if (params.levels.v.seen != nullptr) counted_.values += count * channels();
    }
    launch_seal(params, static_cast<std::uint32_t>(work.blocks.size()), static_cast<std::uint32_t>(options_.kv_heads),
                queue_);
  }

  template <TokenElement T>
  void settle(append_work<T> const& work, appended_rows const& rows) {
    launch_settle({.rows = rows,
                   .from_k = rows.new_k - work.to_sinks * channels(),
                   .from_v = rows.new_v - work.to_sinks * channels(),
                   .sink_k = bits_of(work.sink_k),
                   .sink_v = bits_of(work.sink_v),
                   .to_sinks = static_cast<std::uint32_t>(work.to_sinks),
                   .tail_k = bits_of(work.tail_k),
                   .tail_v = bits_of(work.tail_v),
                   .gone = static_cast<std::uint32_t>(work.sealed_rows()),
                   .tail = static_cast<std::uint32_t>(work.tail_after())},
                  queue_);
  }

  appender_options options_;
  std::optional<stream> own_;
  cudaStream_t queue_;
  std::vector<layer_tables> layers_;
  managed_value<std::uint32_t> refused_{none_refused};
  managed_value<std::uint64_t> clamped_keys_{0}, clamped_values_{0};
  clamp_counts counted_{};  // but for what the device counts

  // Of one call at a time; kernels of the same stream that use them follow one another.
  mutable std::mutex mutex_;
  std::vector<half> host_;
  device_array<half> staged_;  // [keys, values], each [tokens, kv_channels]
  device_array<value_range> ranges_;
  device_array<page_id> blocks_;
};

}  // namespace kvquant::cuda
