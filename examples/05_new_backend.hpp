#pragma once
/// \file
/// A backend of one's own: attention in double precision, one query head after the other, as a header outside the
/// library would define it. Slow and short; the contract of `test/contract` holds it to the reference.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "kvquant/attend/attend_args.hpp"
#include "kvquant/attend/backend.hpp"
#include "kvquant/cache/page_sealer.hpp"
#include "kvquant/cache/row_major_layout.hpp"
#include "kvquant/rope/rope.hpp"

namespace toy {

struct policy {
  std::size_t rows_per_task;  ///< queries that share the keys and values that a task decodes
};
struct policy_selector {
  constexpr policy operator()(kvquant::policy_query const&) const { return {16}; }
};

inline kvquant::support supports(kvquant::artifact_info const& info) {
  if (info.shape.head_dim % 16 != 0) return {kvquant::text("head_dim ", info.shape.head_dim, ", not a multiple of 16")};
  if (info.keys != kvquant::key_space::pre_rope) return {"keys quantized after RoPE"};
  return {};
}

/// One KV head of one sequence in doubles: keys after RoPE. Tokens stand in the order of their positions; of those
/// whose pages were given back there is nothing, and no query sees them.
struct head_tokens {
  std::size_t head_dim;
  std::vector<std::size_t> positions;  ///< [tokens]
  std::vector<double> k, v;            ///< [tokens, head_dim]

  std::span<double> add(std::size_t position) {
    positions.push_back(position);
    k.resize(k.size() + head_dim);
    v.resize(v.size() + head_dim);
    return std::span(k).last(head_dim);
  }
};

// [doc:read]
/// What is stored of one layer, as numbers.
template <kvquant::PackedSpec S>
class layer_reader {
 public:
  using layout = kvquant::row_major_layout<S>;

  layer_reader(kvquant::artifact<S> const& it, int layer)
      : quantizers_(it, layer, kvquant::geometry_for<S>(it.info)),
        rotation_(it.info.shape.rope_of(layer), it.info.shape.head_dim),
        kv_heads_(static_cast<std::size_t>(it.info.shape.kv_heads)) {}

  head_tokens read(kvquant::layer_view const& cache, std::size_t head) const {
    head_tokens out{quantizers_.geometry(head).head_dim, {}, {}, {}};
    add_exact(cache.sink_k, cache.sink_v, 0, head, out);
    std::size_t const pages = (cache.sealed + kvquant::page_tokens - 1) / kvquant::page_tokens;
    for (std::size_t page = cache.gone; page < pages; ++page) add_page(cache, page, head, out);
    add_exact(cache.tail_k, cache.tail_v, cache.sink_k.rows + cache.sealed, head, out);
    return out;
  }

 private:
  void add_page(kvquant::layer_view const& cache, std::size_t index, std::size_t head, head_tokens& out) const {
    kvquant::page_geometry const geometry = quantizers_.geometry(head);
    kvquant::canonical_page<S> page(geometry);
    layout::read(geometry, cache.page(index, head, kv_heads_), page);
    std::size_t const d = geometry.head_dim, first = out.positions.size(), begin = index * kvquant::page_tokens;
    std::size_t const tokens = std::min(kvquant::page_tokens, cache.sealed - begin);  // a re-opened page: the first
    for (std::size_t token = 0; token < tokens; ++token) {
      auto const k = out.add(cache.sink_k.rows + begin + token);
      kvquant::affine const map = kvquant::affine_of(page.v_ranges[token]);
      for (std::size_t c = 0; c < d; ++c) {
        k[c] = quantizers_.keys().decode(head * d + c, page.k_codes[token * d + c]);
        out.v[(first + token) * d + c] = quantizers_.values().decode(head * d + c, map, page.v_codes[token * d + c]);
      }
    }
    auto const add_residuals = [&](std::span<kvquant::outlier const> slots, std::vector<double>& to) {
      for (kvquant::outlier const it : slots)
        if (it.index < tokens * d) to[first * d + it.index] += kvquant::to_float(it.residual);
    };
    add_residuals(page.k_slots, out.k);
    add_residuals(page.v_slots, out.v);
    for (std::size_t token = first; token < out.positions.size(); ++token) rotate(token, out);
  }

  void add_exact(kvquant::view2d<kvquant::half const> k, kvquant::view2d<kvquant::half const> v, std::size_t position,
                 std::size_t head, head_tokens& out) const {
    for (std::size_t token = 0; token < k.rows; ++token) {
      auto const to = out.add(position + token);
      for (std::size_t c = 0; c < out.head_dim; ++c) {
        to[c] = kvquant::to_float(k(token, head * out.head_dim + c));
        out.v[out.v.size() - out.head_dim + c] = kvquant::to_float(v(token, head * out.head_dim + c));
      }
      rotate(out.positions.size() - 1, out);
    }
  }

  void rotate(std::size_t token, head_tokens& of) const {
    rotation_.rotate(std::span(of.k).subspan(token * of.head_dim, of.head_dim),
                     static_cast<std::int64_t>(of.positions[token]));
  }

  kvquant::page_sealer<S> quantizers_;
  kvquant::rope rotation_;
  std::size_t kv_heads_;
};
// [/doc]

// [doc:attend]
template <kvquant::PackedSpec S>
class attention {
 public:
  explicit attention(kvquant::artifact<S> const& it) : shape_(it.info.shape) {
    kvquant::require_supported(supports(it.info), "toy backend");
    for (int layer = 0; layer < shape_.layers; ++layer) readers_.emplace_back(it, layer);
  }

  void operator()(int layer, std::span<kvquant::attend_args const> batch, kvquant::executor_ref executor) const {
    kvquant::require(layer >= 0 && layer < shape_.layers, kvquant::errc::bad_value, "attend: layer ", layer,
                     ", expected 0 to ", shape_.layers - 1);
    for (kvquant::attend_args const& args : batch) kvquant::validate(args, shape_);  // all, before anything is written
    auto const kv_heads = static_cast<std::size_t>(shape_.kv_heads);
    executor.parallel_for(batch.size() * kv_heads,
                          [&](std::size_t task, int) { attend_head(layer, batch[task / kv_heads], task % kv_heads); });
  }

 private:
  void attend_head(int layer, kvquant::attend_args const& args, std::size_t kv_head) const {
    if (args.q.rows == 0) return;
    head_tokens const tokens = readers_[static_cast<std::size_t>(layer)].read(args.cache, kv_head);
    auto const group = static_cast<std::size_t>(shape_.q_heads / shape_.kv_heads);
    for (std::size_t row = 0; row < args.q.rows; ++row)
      for (std::size_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
        attend_query(layer, args, row, head, tokens);
  }

  void attend_query(int layer, kvquant::attend_args const& args, std::size_t row, std::size_t head,
                    head_tokens const& of) const {
    std::size_t const d = of.head_dim, position = args.position(row);
    auto const given = args.q.row(row).subspan(head * d, d);
    std::vector<double> q(given.begin(), given.end()), out(d);
    if (args.space == kvquant::query_space::pre_rope)
      kvquant::rope(shape_.rope_of(layer), shape_.head_dim).rotate(std::span(q), static_cast<std::int64_t>(position));

    double largest = -std::numeric_limits<double>::infinity(), sum = 0;  // online softmax
    for (std::size_t token = 0; token < of.positions.size(); ++token) {
      if (!sees(args, position, of.positions[token])) continue;
      double score = 0;
      for (std::size_t c = 0; c < d; ++c) score += q[c] * of.k[token * d + c];
      score *= double{args.scale(d)};
      double const next = std::max(largest, score), keep = std::exp(largest - next), p = std::exp(score - next);
      for (std::size_t c = 0; c < d; ++c) out[c] = out[c] * keep + p * of.v[token * d + c];
      sum = sum * keep + p;
      largest = next;
    }
    for (std::size_t c = 0; c < d; ++c) args.out(row, head * d + c) = static_cast<float>(out[c] / sum);
    if (!args.score_max.empty()) args.score_max(row, head) = static_cast<float>(largest);
    if (!args.score_sum.empty()) args.score_sum(row, head) = static_cast<float>(sum);
  }

  static bool sees(kvquant::attend_args const& args, std::size_t position, std::size_t token) {
    std::size_t const first =
        token < args.cache.sink_k.rows ? args.first_visible_sink(position) : args.first_visible(position);
    return token >= first && token <= position;
  }

  kvquant::model_shape shape_;
  std::vector<layer_reader<S>> readers_;  // [layers]
};
// [/doc]

// [doc:backend]
struct backend {
  static constexpr std::string_view name = "toy";
  template <kvquant::PackedSpec S>
  using page_layout = kvquant::row_major_layout<S>;
  template <kvquant::PackedSpec S>
  using attention = toy::attention<S>;
  using policy_selector = toy::policy_selector;

  static kvquant::support supports(kvquant::artifact_info const& info) { return toy::supports(info); }
};
static_assert(kvquant::Backend<backend>);
// [/doc]

}  // namespace toy
