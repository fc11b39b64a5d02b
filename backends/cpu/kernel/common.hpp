#pragma once
/// \file
/// What the kernels are given, whatever the instructions. The kernels themselves (`*.inl`) are compiled once for each
/// of them, in its namespace, out of its words.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backends/cpu/plan.hpp"
#include "backends/cpu/tables.hpp"
#include "backends/cpu/tuning.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/core/half.hpp"

namespace kvquant::cpu {

/// Queries that go through the inner loops side by side.
inline constexpr std::size_t largest_together = 4;
inline constexpr std::size_t group_tokens = largest_group * page_tokens;

/// Firsts and seconds of a query's pairs, turned to the base of a tile, scaled.
struct alignas(line_bytes) query_pairs {
  float a[largest_pairs], b[largest_pairs];
};

/// One query of one head, and what it has seen so far.
struct alignas(line_bytes) query_state {
  query_pairs pairs;                  ///< in their own order
  query_pairs ordered;                ///< in that of the head's key codes, where it is another
  float out[largest_head_dim];        ///< Σ p · value, but for what the codes of values say
  float dense[2 * largest_head_dim];  ///< of those Σ p s · multiple: a sum by place, or two, of other tokens each
  float offset;                       ///< of those Σ p z: the same for every channel
  float unit[largest_pairs / lanes];  ///< of its 8-bit or 16-bit entries, for each sixteen pairs
  float slot_unit;                    ///< of its pairs as keys' slots meet them
  float m, l;                         ///< softmax state
  std::size_t row, head;              ///< of the call; of the KV head's group
};

/// A query's entries as integers: of two pairs, 4 bytes or 2 shorts.
struct alignas(line_bytes) query_entries {
  std::int32_t a[largest_pairs / 2], b[largest_pairs / 2];                ///< entries of turned keys, or of key pairs
  std::int32_t a_offset[largest_pairs / 2], b_offset[largest_pairs / 2];  ///< of key pairs alone
};

/// Queries that are served together.
struct alignas(line_bytes) query_chunk {
  query_state queries[largest_together];
  /// Σ p · residual in parts: [slot_parts(count), largest_head_dim, slot_lanes(count)].
  float sparse_out[largest_head_dim * largest_together];
  std::size_t count = 0;
};

/// What slots add goes to one query, or to four side by side.
constexpr std::size_t slot_lanes(std::size_t queries) { return queries == 1 ? 1 : largest_together; }
/// Sums of one query's slots go on side by side, so that none waits for the store of the one before.
constexpr std::size_t slot_parts(std::size_t queries) { return largest_together / slot_lanes(queries); }

/// A number for each query that a slot adds to.
template <std::size_t Lanes>
struct slot_numbers;
template <>
struct slot_numbers<1> {
  using type = float;
};
template <>
struct slot_numbers<4> {
  using type = float __attribute__((vector_size(16)));
};
template <std::size_t Lanes>
using slot_floats = typename slot_numbers<Lanes>::type;

/// What one task writes on its way; one for each worker.
struct alignas(line_bytes) kernel_scratch {
  query_entries entries[largest_together];
  float scores[largest_together][group_tokens];                                            ///< then probabilities
  std::uint8_t high[largest_together][group_tokens], low[largest_together][group_tokens];  ///< probabilities, in parts
  float by_token[group_tokens * largest_together];  ///< probabilities, or scores of slots: [, slot_lanes]
  /// What a slot's pair of cos and sin is multiplied with: [2 · most_pairs, slot_lanes, 2].
  alignas(line_bytes) std::int16_t members[2 * key_slot::most_pairs * largest_together * 2];
  float residuals[page_tokens * largest_head_dim];  ///< of a page's slots of one side
  std::int16_t turned_a[page_tokens * largest_pairs], turned_b[page_tokens * largest_pairs];  ///< keys of a page
  std::int8_t values[page_tokens * largest_head_dim];                                         ///< levels of a page
  float partial_dots[largest_together][lanes][lanes];
  float gathered_a[largest_pairs], gathered_b[largest_pairs];
  line_vector<query_chunk> chunks;
  line_vector<float> tile_k, tile_v;  ///< [page_tokens, head_dim] of a page as floats
  key_turns turns;
  pair_angles angles{largest_pairs};                           ///< in the order of a head's key codes
  float step_cos[largest_pairs]{}, step_sin[largest_pairs]{};  ///< likewise, those of a page
};

/// Turns one page of a layer into floats, [page_tokens, head_dim] each, residuals added.
class page_reader {
 public:
  page_reader() = default;
  page_reader(page_reader const&) = delete;
  page_reader& operator=(page_reader const&) = delete;
  virtual ~page_reader() = default;
  virtual void read(std::span<std::byte const> page, std::size_t kv_head, float* k, float* v) const = 0;
};

/// One layer of one model, as kernels read it.
struct layer_tables {
  std::vector<key_head> key_heads;      ///< [kv_heads]
  std::vector<value_head> value_heads;  ///< [kv_heads]
  std::vector<key_turns> turns;         ///< [kv_heads], or none: built when they are needed
  std::unique_ptr<page_reader> reader;  ///< where pages become floats
};

/// The steps in which a sealed page is read: chunks of its keys, units of its values, some slots at a time of each.
struct page_steps {
  static constexpr std::size_t slots_of_step = 4;
  std::size_t values, key_slots, value_slots, count;  ///< where each begin; keys begin at 0

  explicit page_steps(page_geometry const& it)
      : values(it.head_dim / chunk_channels),
        key_slots(2 * values),
        value_slots(key_slots + it.k_slots / slots_of_step),
        count(value_slots + it.v_slots / slots_of_step) {}
};

/// One model.
struct model_tables {
  model_shape shape;
  page_geometry geometry;
  quad_offsets offsets;
  page_steps steps;
  pair_access access;
  rotation_tables rotation;

  attention_policy policy_for(std::size_t queries) const {
    return policy_selector{}({shape, geometry.k_bits, geometry.v_bits, geometry.slot_bytes() > 0, queries});
  }
};

/// The task: some tiles of one KV head for consecutive queries of one sequence. `angles(run)`: cos and sin of each
/// row's position from the base of the first tile that is read of the run, attention factors included.
struct split_task {
  model_tables const& model;
  layer_tables const& layer;
  split const& what;
  float const* angles[3];  ///< by run: [rows, {cos, sin}, padded(pairs)]
  float* partials;         ///< m, l, o of every (row, head of the group)

  std::size_t head_dim() const { return model.geometry.head_dim; }
  std::size_t pairs() const { return head_dim() / 2; }
  std::size_t group() const { return static_cast<std::size_t>(model.shape.q_heads / model.shape.kv_heads); }
  attend_args const& args() const { return *what.queries.args; }
  attention_policy policy() const { return model.policy_for(args().q.rows); }
  layer_view const& cache() const { return args().cache; }
  std::byte const* page(std::size_t index) const {
    return cache().page(index, what.kv_head, static_cast<std::size_t>(model.shape.kv_heads)).data();
  }
};

/// Stands for the bits of codes whose widths are their chunks'.
inline constexpr int bits_by_chunk = 0;
template <Format F>
inline constexpr int kernel_bits = is_by_channel<F> ? bits_by_chunk : F::bits;

/// The kernels of one set of instructions for one kind of pages.
struct kernel_set {
  void (*attend)(split_task const&, kernel_scratch&);
  void (*build_turns)(layer_tables&, rotation_tables const&);
};

/// Touches the page that will be read next, a few lines at a time, so that it is on its way while something else is
/// computed.
class read_ahead {
 public:
  read_ahead() = default;
  /// `steps`: how often `step` will be called.
  read_ahead(std::byte const* page, std::size_t page_bytes, std::size_t steps)
      : page_(page),
        lines_(page_bytes / line_bytes),
        lines_of_step_(std::max(fewest_lines_of_step, (lines_ + steps - 1) / steps)) {}

  /// The last one may go beyond the page by less than a step.
  void step(std::size_t index) const {
    std::size_t const first = index * lines_of_step_;
    if (first >= lines_) return;
    std::byte const* const at = page_ + first * line_bytes;
    for (std::size_t i = 0; i < lines_of_step_; ++i) __builtin_prefetch(at + i * line_bytes, 0, read_ahead_locality);
    // A function that does nothing but touch is taken for one without effect, and its calls for superfluous.
    asm volatile("");
  }

 private:
  std::byte const* page_ = nullptr;
  std::size_t lines_ = 0, lines_of_step_ = 0;
};

}  // namespace kvquant::cpu
