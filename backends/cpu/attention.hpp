#pragma once
/// \file
/// Decode attention over packed pages by whatever instructions the machine has.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "backends/cpu/angle_list.hpp"
#include "backends/cpu/isa.hpp"
#include "backends/cpu/kernel/common.hpp"
#include "backends/cpu/page_decoder.hpp"
#include "backends/cpu/plan.hpp"
#include "backends/cpu/quad_layout.hpp"
#include "backends/cpu/sealer.hpp"
#include "backends/cpu/supports.hpp"
#include "backends/cpu/tables.hpp"
#include "backends/cpu/with_kernels.hpp"
#include "kvquant/attend/backend.hpp"
#include "kvquant/core/scratch_pool.hpp"

namespace kvquant::cpu {

/// How codes are multiplied.
enum class arithmetic {
  integer,  ///< products of bytes, where codes have 1 to 4 bits
  floating  ///< pages become floats: exact but for their rounding
};

/// What cannot be done with an artifact's model and datatypes, or by this machine.
inline support supports(artifact_info const& info, arithmetic how) {
  if (available_isas().empty()) return {"this machine, expected one with SSSE3"};
  if (info.own_levels && how == arithmetic::integer)
    return {"levels of a channel's own in integers, expected those of eight channels of a head, or floats"};
  return supports_model(info);
}

namespace detail {

/// Which kernels serve: those of binary16, of codes as integers, or of pages that become floats.
template <PackedSpec S>
inline constexpr bool is_exact = !S::key_format::scaled;
template <PackedSpec S, arithmetic Arithmetic>
inline constexpr bool in_integers = QuadSpec<S>&& Arithmetic == arithmetic::integer;

template <PackedSpec S, arithmetic Arithmetic, class Kernels>
kernel_set kernels_out_of() {
  if constexpr (is_exact<S>)
    return Kernels::exact();
  else if constexpr (in_integers<S, Arithmetic>)
    return Kernels::template integer<kernel_bits<typename S::key_format>, kernel_bits<typename S::value_format>>();
  else
    return Kernels::floating();
}

template <PackedSpec S, arithmetic Arithmetic>
kernel_set kernels_for(isa which) {
  return with_kernels<kernel_set>(which,
                                  []<class Kernels>(Kernels) { return kernels_out_of<S, Arithmetic, Kernels>(); });
}

/// Pages of one layer as floats.
template <PackedSpec S>
class float_pages final : public page_reader {
 public:
  float_pages(artifact<S> const& it, int layer, page_geometry const& geometry) : decoder_(it, layer, geometry) {}

  void read(std::span<std::byte const> bytes, std::size_t kv_head, float* k, float* v) const override {
    auto const page = pages_.borrow();
    decoder_.decode(bytes, kv_head, *page, k, v);
  }

 private:
  page_decoder<page_layout<S>> decoder_;
  mutable scratch_pool<canonical_page<S>> pages_;
};

template <QuadSpec S>
layer_tables integer_tables(artifact<S> const& it, int layer, page_geometry const& geometry) {
  page_sealer<S> const quantizers(it, layer, geometry);
  layer_tables out;
  for (std::size_t head = 0; head < static_cast<std::size_t>(it.info.shape.kv_heads); ++head) {
    page_geometry const of_head = quantizers.geometry(head);
    out.key_heads.emplace_back(quantizers.keys(), head, of_head);
    out.value_heads.emplace_back(quantizers.values(), head, of_head);
  }
  return out;
}

}  // namespace detail

template <PackedSpec S, arithmetic Arithmetic = arithmetic::integer>
class attention {
 public:
  /// Throws `unsupported` naming what is missing.
  explicit attention(artifact<S> const& it, isa which = chosen_isa())
      : kernels_(detail::kernels_for<S, Arithmetic>(which)),
        layers_(static_cast<std::size_t>(checked(it).shape.layers)) {
    kinds_.emplace_back(it.info, it.info.shape.rope);
    if (!it.info.shape.local.layers.empty()) kinds_.emplace_back(it.info, it.info.shape.local.rope);
    for (int layer = 0; layer < it.info.shape.layers; ++layer) {
      layer_tables& tables = layers_[static_cast<std::size_t>(layer)];
      [[maybe_unused]] model_tables const& model = kinds_[kind_of(layer)].model;
      if constexpr (detail::in_integers<S, Arithmetic>) {
        tables = detail::integer_tables(it, layer, model.geometry);
        if (model.policy_for(1).turn_keys) kernels_.build_turns(tables, model.rotation);
      } else if constexpr (!detail::is_exact<S>) {
        tables.reader = std::make_unique<detail::float_pages<S>>(it, layer, model.geometry);
      }
    }
  }

  void operator()(int layer, std::span<attend_args const> batch, executor_ref executor) const {
    model_tables const& model = kinds_.front().model;
    require(layer >= 0 && layer < model.shape.layers, errc::bad_value, "attend: layer ", layer, ", expected 0 to ",
            model.shape.layers - 1);
    for (attend_args const& it : batch) validate(it, model.shape);
    auto const work = workspaces_.borrow();
    work->start(executor);
    for (attend_args const& args : batch) {
      auto const policy = model.policy_for(args.q.rows);
      for (std::size_t row = 0; row < args.q.rows; row += policy.rows_per_block) {
        work->tasks.add_block({&args, row, std::min(policy.rows_per_block, args.q.rows - row)}, model.shape,
                              policy.tiles_per_split);
        if (work->tasks.fills_wave()) run_wave(layer, *work, executor);
      }
    }
    run_wave(layer, *work, executor);
  }

 private:
  /// Layers that turn alike: those that see all tokens, or the local ones.
  struct layer_kind {
    rope rotation;
    model_tables model;

    layer_kind(artifact_info const& info, rope_config const& turns)
        : rotation(turns, info.shape.head_dim), model(make_model(info, rotation)) {}
  };
  struct workspace {
    plan tasks;
    std::array<angle_list, 2> angles;                      // of each kind
    std::vector<std::array<std::size_t, 3>> angle_starts;  // [splits] by run
    std::vector<std::unique_ptr<kernel_scratch>> workers;

    void start(executor_ref executor) {
      tasks.clear();
      while (workers.size() < static_cast<std::size_t>(executor.workers()))
        workers.push_back(std::make_unique<kernel_scratch>());
    }
  };

  static artifact_info const& checked(artifact<S> const& it) {
    require_supported(supports(it.info, Arithmetic), "CPU backend");
    return it.info;
  }

  static model_tables make_model(artifact_info const& info, rope const& rotation) {
    page_geometry const geometry = geometry_for<S>(info);
    return {info.shape,
            geometry,
            quad_offsets(geometry),
            page_steps(geometry),
            access_of(geometry),
            rotation_tables(rotation, geometry)};
  }

  std::size_t kind_of(int layer) const { return kinds_.front().model.shape.is_local(layer) ? 1 : 0; }

  void run_wave(int layer, workspace& work, executor_ref executor) const {
    layer_kind const& kind = kinds_[kind_of(layer)];
    angle_list& list = work.angles[kind_of(layer)];
    set_angles(kind, work, list);
    layer_tables const& tables = layers_[static_cast<std::size_t>(layer)];
    work.tasks.run_wave(kind.model.shape, executor, [&](std::size_t task, int worker, float* partials) {
      auto const [sinks, pages, tail] = work.angle_starts[task];
      float const* const angles = list.data();
      kernels_.attend(
          {kind.model, tables, work.tasks.splits[task], {angles + sinks, angles + pages, angles + tail}, partials},
          *work.workers[static_cast<std::size_t>(worker)]);
    });
  }

  /// Splits of different KV heads, which follow each other, begin at the same tiles.
  static void set_angles(layer_kind const& kind, workspace& work, angle_list& list) {
    list.rewind();
    work.angle_starts.clear();
    for (merge_group const& group : work.tasks.groups)
      for (std::size_t i = group.first_split; i < group.first_split + group.splits; ++i) {
        split const& it = work.tasks.splits[i];
        if (it.kv_head > 0) {
          work.angle_starts.push_back(work.angle_starts[work.angle_starts.size() - group.splits]);
          continue;
        }
        work.angle_starts.emplace_back();
        it.for_each_run([&](run where, std::size_t first, std::size_t) {
          attend_args const& args = *it.queries.args;
          auto const base = static_cast<std::int64_t>(place_of(args.cache, where, first).base);
          auto const position = static_cast<std::int64_t>(it.queries.position(0));
          bool const rotated = args.space == query_space::post_rope;
          work.angle_starts.back()[static_cast<std::size_t>(where)] = list.add(
              kind.rotation, kind.model.rotation, (rotated ? 0 : position) - base, it.queries.rows, args.space);
        });
      }
  }

  kernel_set kernels_;
  std::vector<layer_kind> kinds_;     // one, or that of the local layers behind it
  std::vector<layer_tables> layers_;  // [layers]
  mutable scratch_pool<workspace> workspaces_;
};

}  // namespace kvquant::cpu
