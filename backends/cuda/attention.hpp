#pragma once
/// \file
/// Decode attention over packed pages on a CUDA device.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <mutex>
#include <span>
#include <vector>

#include "backends/cuda/error.hpp"
#include "backends/cuda/fragment_layout.hpp"
#include "backends/cuda/launch/attend.hpp"
#include "backends/cuda/memory.hpp"
#include "backends/cuda/plan.hpp"
#include "backends/cuda/staged_rows.hpp"
#include "backends/cuda/supports.hpp"
#include "backends/cuda/tables.hpp"
#include "backends/cuda/tuning.hpp"
#include "backends/cuda/width_tables.hpp"
#include "kvquant/attend/backend.hpp"
#include "kvquant/core/scratch_pool.hpp"

namespace kvquant::cuda {

/// Angles of a model on the device.
class device_angles {
 public:
  device_angles(rope const& rotation, int head_dim)
      : rotation_(rotation),
        pairs_(static_cast<std::size_t>(head_dim) / 2),
        token_turns_(make_turns(rotation, pairs_, 0, page_tokens, 1)),
        key_angles_(page_angles(rotation, pairs_).by_fragment()) {}

  turn const* token_turns() const { return token_turns_.data(); }
  four_words const* key_angles() const { return key_angles_.data(); }

  /// Turns by whole pages, for positions below `tokens`. What was returned before stays valid.
  turn const* page_turns(std::size_t tokens) const {
    std::lock_guard const lock(mutex_);
    if (page_turns_.empty() || tokens > turned_tokens_) {
      turned_tokens_ = std::max<std::size_t>(2 * turned_tokens_, std::max<std::size_t>(tokens, 1 << 14));
      page_turns_.emplace_back(make_turns(rotation_, pairs_, 0, turned_tokens_ / page_tokens + 2, page_tokens));
    }
    return page_turns_.back().data();
  }

 private:
  rope rotation_;
  std::size_t pairs_;
  device_array<turn> token_turns_;
  device_array<four_words> key_angles_;
  mutable std::mutex mutex_;
  mutable std::size_t turned_tokens_ = 0;
  mutable std::vector<device_array<turn>> page_turns_;  // the latest is the longest
};

/// Attention that is planned: what `attention::run` needs in device memory.
struct prepared_call {
  plan tasks;
  std::vector<page_id> page_ids;  ///< of the whole batch
  device_array<page_id> pages;
  device_array<work_item> items;
  device_array<merge_item> outputs;
  device_array<float> partials;
  attend_launch launch{};
};

template <PackedSpec S>
class attention {
 public:
  /// Throws `unsupported` naming what is missing, `device` for what the device refuses.
  explicit attention(artifact<S> const& it)
      : shape_(checked(it).shape),
        geometry_(geometry_for<S>(it.info)),
        rotation_(shape_.rope, shape_.head_dim),
        angles_(rotation_, shape_.head_dim) {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    for (int layer = 0; layer < shape_.layers; ++layer) layers_.push_back(make_layer(it, layer));
  }

  /// The cache lies in memory that the device reads, `managed_memory()` for one, and waits for its appends; queries and
  /// results on the host.
  void operator()(int layer, std::span<attend_args const> batch, executor_ref) const {
    for (attend_args const& it : batch) validate(it, shape_);
    auto const work = workspaces_.borrow();
    std::vector<device_rows> const rows = work->rows.upload(batch, shape_, work->queue.get());
    prepare(layer, batch, rows, work->call, work->queue.get());
    run(work->call, work->queue.get());
    work->rows.download(batch, work->queue);
  }

  /// Plans attention for queries and results in device memory: `rows` of each item of the batch, whose own queries and
  /// results only say how many there are. Page tables are read here, and copied. What is planned may be run until a
  /// sequence has a token more or another page. Throws `bad_value` for a layer that there is not.
  void prepare(int layer, std::span<attend_args const> batch, std::span<device_rows const> rows, prepared_call& to,
               cudaStream_t on) const {
    require(layer >= 0 && layer < shape_.layers, errc::bad_value, "attend: layer ", layer, ", expected 0 to ",
            shape_.layers - 1);
    require(rows.size() == batch.size(), errc::bad_shape, "attend: a batch of ", batch.size(), " with rows of ",
            rows.size(), ", expected as many");
    to.tasks.clear();
    to.page_ids.clear();
    for (attend_args const& it : batch)
      to.page_ids.insert(to.page_ids.end(), it.cache.pages.begin(), it.cache.pages.end());
    to.page_ids.resize(to.page_ids.size() + spare_page_ids);
    to.pages.upload(to.page_ids, on);
    page_id const* pages = to.pages.data();
    for (std::size_t i = 0; i < batch.size(); ++i) {
      policy const how = policy_selector{}({shape_, bits(), bits(), sparse(), batch[i].q.rows});
      to.tasks.add(batch[i], rows[i], pages, shape_, how, static_cast<std::size_t>(multiprocessors_));
      pages += batch[i].cache.pages.size();
    }
    to.items.upload(to.tasks.items, on);
    to.outputs.upload(to.tasks.outputs, on);
    to.partials.reserve(to.tasks.records * partial_floats(shape_.head_dim));
    to.launch = {.params = params_of(layers_[static_cast<std::size_t>(layer)], batch, to),
                 .items = static_cast<std::uint32_t>(to.tasks.items.size()),
                 .sparse = sparse()};
  }

  /// Two kernels on a stream, which may be captured in a graph.
  void run(prepared_call const& it, cudaStream_t on) const {
    if (it.tasks.outputs.empty()) return;
    attend_launcher_for(bits(), shape_.head_dim)(it.launch, on);
    launch_merge({it.items.data(), it.outputs.data(), it.partials.data(), shape_.head_dim},
                 static_cast<std::uint32_t>(it.tasks.outputs.size()), on);
  }

 private:
  struct layer_memory {
    device_array<std::uint32_t> levels;
    device_array<four_words> key_maps;
    device_array<float> key_units, value_units;
  };

  /// Of one call from the host. Calls that overlap have streams of their own.
  struct workspace {
    stream queue;
    staged_rows rows;
    prepared_call call;
  };

  static artifact_info const& checked(artifact<S> const& it) {
    require_supported(supports(it.info), "CUDA backend");
    return it.info;
  }
  static constexpr int bits() {
    if constexpr (FragmentSpec<S>)
      return code_bits_of<S>;
    else
      return 16;  // supports() has refused it
  }
  bool sparse() const { return geometry_.slot_bytes() > 0; }

  layer_memory make_layer(artifact<S> const& it, int index) const {
    layer_memory out;
    if constexpr (FragmentSpec<S> && S::key_format::scaled) {
      host_tables tables;
      if constexpr (is_by_channel<typename S::key_format>)
        tables = width_tables_of(it, index, geometry_);
      else
        tables = tables_of_layer(it, index, geometry_);
      out.levels = device_array<std::uint32_t>(tables.levels);
      out.key_maps = device_array<four_words>(tables.key_maps);
      out.key_units = device_array<float>(tables.key_units);
      out.value_units = device_array<float>(tables.value_units);
    }
    return out;
  }

  attend_params params_of(layer_memory const& tables, std::span<attend_args const> batch,
                          prepared_call const& call) const {
    std::size_t tokens = 0;
    for (attend_args const& it : batch) tokens = std::max(tokens, it.cache.tokens());
    attend_params out{};
    out.model = {.kv_heads = shape_.kv_heads,
                 .group = shape_.q_heads / shape_.kv_heads,
                 .turned_pairs = rotation_.rotary_dim() / 2,
                 .half_split = rotation_.pairing() == rope_pairing::half_split,
                 .attention_factor = static_cast<float>(rotation_.attention_factor()),
                 .page_turns = angles_.page_turns(tokens),
                 .token_turns = angles_.token_turns(),
                 .key_angles = angles_.key_angles()};
    out.layer = {tables.levels.data(), tables.key_maps.data(), tables.key_units.data(), tables.value_units.data()};
    out.items = call.items.data();
    if (!batch.empty()) {  // all of one pool
      out.slab = batch.front().cache.slab;
      out.page_bytes = batch.front().cache.page_bytes;
    }
    out.offsets = offsets_of(geometry_, bits());
    out.columns = std::bit_ceil(static_cast<std::uint32_t>(call.tasks.most_columns));
    out.partials = call.partials.data();
    return out;
  }

  model_shape shape_;
  page_geometry geometry_;
  rope rotation_;
  device_angles angles_;
  int multiprocessors_ = 0;
  std::vector<layer_memory> layers_;
  mutable scratch_pool<workspace> workspaces_;
};

}  // namespace kvquant::cuda
