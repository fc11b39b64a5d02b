#pragma once
/// \file
/// Decode attention over packed pages in portable C++: every tile becomes floats, keys turn by their place in it, and
/// queries turn to its base (see `rope.hpp`). Written to be right; the reference is what it is held to.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "backends/cpu/generic/policy.hpp"
#include "backends/cpu/generic/tile.hpp"
#include "backends/cpu/plan.hpp"
#include "backends/cpu/supports.hpp"
#include "kvquant/attend/attend_args.hpp"
#include "kvquant/attend/backend.hpp"
#include "kvquant/core/scratch_pool.hpp"

namespace kvquant::cpu::generic {

template <PackedSpec S>
class attention {
 public:
  /// Throws `unsupported` naming what is missing.
  explicit attention(artifact<S> const& it)
      : shape_(checked(it).shape),
        geometry_(geometry_for<S>(it.info)),
        rotation_(shape_.rope, shape_.head_dim),
        local_rotation_(shape_.local.layers.empty() ? shape_.rope : shape_.local.rope, shape_.head_dim) {
    for (int layer = 0; layer < shape_.layers; ++layer) readers_.emplace_back(it, layer, geometry_);
  }

  void operator()(int layer, std::span<attend_args const> batch, executor_ref executor) const {
    require(layer >= 0 && layer < shape_.layers, errc::bad_value, "attend: layer ", layer, ", expected 0 to ",
            shape_.layers - 1);
    for (attend_args const& it : batch) validate(it, shape_);
    auto const work = workspaces_.borrow();
    work->workers.resize(std::max(work->workers.size(), static_cast<std::size_t>(executor.workers())));
    work->tasks.clear();
    for (attend_args const& args : batch) {
      auto const policy = policy_selector{}(
          {shape_, S::key_format::bits, S::value_format::bits, geometry_.slot_bytes() > 0, args.q.rows});
      for (std::size_t row = 0; row < args.q.rows; row += policy.rows_per_block) {
        work->tasks.add_block({&args, row, std::min(policy.rows_per_block, args.q.rows - row)}, shape_,
                              policy.tiles_per_split);
        if (work->tasks.fills_wave()) run_wave(layer, *work, executor);
      }
    }
    run_wave(layer, *work, executor);
  }

 private:
  /// Keys turn by their place in the tile, queries from tile to tile.
  struct rotation_tables {
    rope rotation;
    rope_angle_table<float> page;   // positions 0 to page_tokens − 1
    rope_angle_table<double> step;  // position page_tokens

    rotation_tables(rope_config const& config, int head_dim)
        : rotation(config, head_dim),
          page(rotation.angle_table<float>(0, page_tokens)),
          step(rotation.angle_table<double>(page_tokens, 1)) {}
    std::size_t pairs() const { return step.pairs(); }
  };
  /// What is read of one layer.
  struct layer_source {
    tile_reader<S> const& reader;
    rotation_tables const& turns;
  };
  struct worker {
    typename tile_reader<S>::buffer tile;
    std::vector<double> cos, sin;  // [rows, pairs] of the query's position relative to the tile's base
    std::vector<float> q;          // [rows, group, head_dim]
    std::array<float, page_tokens> scores;
  };
  struct workspace {
    plan tasks;
    std::vector<worker> workers;
  };

  static artifact_info const& checked(artifact<S> const& it) {
    require_supported(supports_model(it.info), "generic CPU backend");
    return it.info;
  }

  std::size_t head_dim() const { return geometry_.head_dim; }
  std::size_t group() const { return static_cast<std::size_t>(shape_.q_heads / shape_.kv_heads); }
  std::size_t partial_size() const { return plan::partial_size(shape_); }

  void run_wave(int layer, workspace& work, executor_ref executor) const {
    layer_source const from{readers_[static_cast<std::size_t>(layer)],
                            shape_.is_local(layer) ? local_rotation_ : rotation_};
    work.tasks.run_wave(shape_, executor, [&](std::size_t task, int index, float* partials) {
      attend_split(from, work.tasks.splits[task], partials, work.workers[static_cast<std::size_t>(index)]);
    });
  }

  /// `partials`: m, l, o [head_dim] of every (row, head of the group).
  void attend_split(layer_source const& from, split const& it, float* partials, worker& mine) const {
    std::size_t const rows = it.queries.rows;
    for (std::size_t i = 0; i < rows * group(); ++i) {
      partials[i * partial_size()] = -std::numeric_limits<float>::infinity();
      std::fill_n(partials + i * partial_size() + 1, partial_size() - 1, 0.0f);
    }
    from.reader.prepare(mine.tile);
    it.for_each_run([&](run where, std::size_t first, std::size_t last) {
      start_angles(from.turns, it.queries, place_of(it.queries.args->cache, where, first).base, mine);
      for (std::size_t tile = first; tile < last; ++tile) {
        if (tile > first) step_angles(from.turns, rows, mine);
        attend_tile(from, it, where, tile, partials, mine);
      }
    });
  }

  void attend_tile(layer_source const& from, split const& it, run where, std::size_t tile, float* partials,
                   worker& mine) const {
    std::size_t const d = head_dim();
    tile_place const place = place_of(it.queries.args->cache, where, tile);
    if (!any_visible(it.queries, where, place)) return;
    from.reader.read(it.queries.args->cache, where, tile, it.kv_head, mine.tile);
    auto const k = mine.tile.keys(place.tokens, d), v = mine.tile.values(place.tokens, d);
    rotate_keys(k, from.turns.rotation, from.turns.page);
    rotate_queries(from.turns.pairs(), it, mine);
    for (std::size_t row = 0; row < it.queries.rows; ++row) {
      auto const seen = visible_in(it.queries, row, where, place);
      if (seen.empty()) continue;
      for (std::size_t head = 0; head < group(); ++head) {
        std::size_t const at = row * group() + head;
        add_tokens({mine.q.data() + at * d, d}, k.middle_rows(seen.first, seen.last - seen.first),
                   v.middle_rows(seen.first, seen.last - seen.first), mine.scores, partials + at * partial_size());
      }
    }
  }

  /// Angles of every row relative to a base: exact.
  static void start_angles(rotation_tables const& turns, query_block const& queries, std::size_t base, worker& mine) {
    attend_args const& args = *queries.args;
    std::size_t const pairs = turns.pairs();
    mine.cos.resize(std::max(mine.cos.size(), queries.rows * pairs));
    mine.sin.resize(mine.cos.size());
    if (pairs == 0) return;
    bool const rotated = args.space == query_space::post_rope;
    double const factor = rotated ? turns.rotation.attention_factor() : 1;
    for (std::size_t row = 0; row < queries.rows; ++row) {
      std::size_t const position = rotated ? 0 : queries.position(row);
      auto const cos = std::span(mine.cos).subspan(row * pairs, pairs);
      auto const sin = std::span(mine.sin).subspan(row * pairs, pairs);
      turns.rotation.angles_at(static_cast<std::int64_t>(position) - static_cast<std::int64_t>(base), cos, sin);
      for (std::size_t pair = 0; rotated && pair < pairs; ++pair) {
        cos[pair] /= factor;  // the query has it already
        sin[pair] /= factor;
      }
    }
  }
  /// On to the next tile, whose base is a page further: an error of 2^-53 a step.
  static void step_angles(rotation_tables const& turns, std::size_t rows, worker& mine) {
    double const factor = turns.rotation.attention_factor();
    auto const [step_cos, step_sin] = turns.step[0];
    std::size_t const pairs = turns.pairs();
    for (std::size_t row = 0; row < rows; ++row)
      for (std::size_t pair = 0; pair < pairs; ++pair) {
        double& cos = mine.cos[row * pairs + pair];
        double& sin = mine.sin[row * pairs + pair];
        double const c = step_cos[pair] / factor, s = step_sin[pair] / factor, old = cos;
        cos = old * c + sin * s;
        sin = sin * c - old * s;
      }
  }

  /// The queries of the split's heads, their first `n` pairs turned to the tile's base, times the softmax scale.
  void rotate_queries(std::size_t n, split const& it, worker& mine) const {
    attend_args const& args = *it.queries.args;
    std::size_t const d = head_dim();
    float const scale = args.scale(d);
    mine.q.resize(std::max(mine.q.size(), it.queries.rows * group() * d));
    bool const half_split = shape_.rope.pairing == rope_pairing::half_split;
    for (std::size_t row = 0; row < it.queries.rows; ++row)
      for (std::size_t head = 0; head < group(); ++head) {
        float const* const from = args.q.row(it.queries.first_row + row).data() + (it.kv_head * group() + head) * d;
        float* const to = mine.q.data() + (row * group() + head) * d;
        for (std::size_t channel = 2 * n; channel < d; ++channel) to[channel] = scale * from[channel];
        for (std::size_t pair = 0; pair < n; ++pair) {
          std::size_t const a = half_split ? pair : 2 * pair, b = half_split ? pair + n : 2 * pair + 1;
          double const x = from[a], y = from[b], c = mine.cos[row * n + pair], s = mine.sin[row * n + pair];
          to[a] = scale * static_cast<float>(x * c - y * s);
          to[b] = scale * static_cast<float>(x * s + y * c);
        }
      }
  }

  static float dot(std::span<float const> a, float const* b) {
    std::array<float, 16> sums{};  // head_dim is a multiple of 16
    for (std::size_t i = 0; i < a.size(); i += 16)
      for (std::size_t lane = 0; lane < 16; ++lane) sums[lane] += a[i + lane] * b[i + lane];
    for (std::size_t width = 8; width > 0; width /= 2)
      for (std::size_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
    return sums[0];
  }

  /// Online softmax: `partial` is m, l, o.
  static void add_tokens(std::span<float const> q, view2d<float const> k, view2d<float const> v,
                         std::span<float> scores, float* partial) {
    float largest = partial[0];
    for (std::size_t token = 0; token < k.rows; ++token) {
      scores[token] = dot(q, k.row(token).data());
      largest = std::max(largest, scores[token]);
    }
    float const keep = partial[1] == 0 ? 0 : std::exp(partial[0] - largest);
    float* const o = partial + 2;
    float sum = 0;
    for (std::size_t i = 0; i < q.size(); ++i) o[i] *= keep;
    for (std::size_t token = 0; token < k.rows; ++token) {
      float const p = std::exp(scores[token] - largest);
      float const* const value = v.row(token).data();
      sum += p;
      for (std::size_t i = 0; i < q.size(); ++i) o[i] += p * value[i];
    }
    partial[0] = largest;
    partial[1] = partial[1] * keep + sum;
  }

  model_shape shape_;
  page_geometry geometry_;
  rotation_tables rotation_, local_rotation_;
  std::vector<tile_reader<S>> readers_;  // [layers]
  mutable scratch_pool<workspace> workspaces_;
};

}  // namespace kvquant::cpu::generic
