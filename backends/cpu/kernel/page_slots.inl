// What slots add to what the codes say: a residual each, of one element.

/// `use(count)` for batches of slots, which lie in `scratch.slots`, with slots of nothing behind them up to a multiple
/// of sixteen.
template <class F>
inline void for_each_batch(outlier const* slots, std::size_t count, kernel_scratch& scratch, F&& use) {
  for (std::size_t first = 0; first < count; first += slot_batch) {
    std::size_t const many = std::min(slot_batch, count - first);
    std::copy_n(slots + first, many, scratch.slots);
    std::fill(scratch.slots + many, scratch.slots + padded(many), outlier{});
    use(padded(many));
  }
}

inline outlier const* slots_at(std::byte const* page, std::size_t offset) {
  return reinterpret_cast<outlier const*>(page + offset);
}

/// One number for each query that a slot adds to.
template <std::size_t Lanes>
struct slot_vector;
template <>
struct slot_vector<1> {
  using type = float;
};
template <>
struct slot_vector<4> {
  using type = float __attribute__((vector_size(16)));
};

/// `[rows, Lanes]` at `x`.
template <std::size_t Queries>
inline auto& slot_row(float* x, std::size_t row) {
  constexpr std::size_t count = slot_lanes(Queries);
  return reinterpret_cast<typename slot_vector<count>::type*>(x)[row];
}

/// Rows of queries' vectors side by side, missing queries as zeros. `x(n)`: the 16 elements of query n.
template <std::size_t Queries, class X>
inline void store_lanes(float* to, X&& x) {
  if constexpr (Queries == 1) {
    store(to, x(0));
  } else {
    floats all_queries[largest_together];
    for (std::size_t n = 0; n < largest_together; ++n) all_queries[n] = n < Queries ? x(n) : zero();
    store_transposed(to, all_queries);
  }
}

/// The queries' pairs at the page's base: firsts, then seconds.
template <std::size_t Queries>
inline void set_members(query_chunk const& chunk, std::size_t all_pairs, float* members) {
  constexpr std::size_t count = slot_lanes(Queries);
  for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
    store_lanes<Queries>(members + pair * count, [&](std::size_t n) { return load(chunk.queries[n].a + pair); });
    store_lanes<Queries>(members + (key_slot::most_pairs + pair) * count,
                         [&](std::size_t n) { return load(chunk.queries[n].b + pair); });
  }
}

inline void set_slot_angles(rotation_tables const& rotation, std::size_t count, kernel_scratch& scratch) {
  floats const unit = all(1.0f / rotation_tables::slot_unit16);
  for (std::size_t i = 0; i < count; i += lanes) {
    floats cos, sin;
    load_angles(rotation.by_slot.data(), scratch.slots + i, cos, sin);
    floats const residual = load_residuals(scratch.slots + i) * unit;
    store(scratch.slot_cos + i, residual * cos);
    store(scratch.slot_sin + i, residual * sin);
  }
}

/// Adds [page_tokens, 4 queries] to the scores of each query.
template <std::size_t Queries>
inline void add_scores_by_token(float const* by_token, kernel_scratch& scratch, std::size_t first_token) {
  for (std::size_t t = 0; t < page_tokens; t += lanes) {
    float const* const from = by_token + t * largest_together;
    floats even[2], odd[2], x[largest_together];
    for (std::size_t i = 0; i < 2; ++i)
      separate(load(from + 2 * lanes * i), load(from + 2 * lanes * i + lanes), even[i], odd[i]);
    separate(even[0], even[1], x[0], x[2]);
    separate(odd[0], odd[1], x[1], x[3]);
    for (std::size_t n = 0; n < Queries; ++n) {
      float* const score = scratch.scores[n] + first_token + t;
      store(score, load(score) + x[n]);
    }
  }
}

/// score_j += residual · (member at the page's base, turned by j)
template <std::size_t Queries>
void add_key_slots(split_task const& task, std::byte const* page, query_chunk const& chunk, kernel_scratch& scratch,
                   std::size_t first_token) {
  std::size_t const count = task.model.geometry.k_slots;
  if (count == 0) return;
  set_members<Queries>(chunk, padded(task.pairs()), scratch.members);
  float* const scores = Queries == 1 ? scratch.scores[0] + first_token : scratch.by_token;
  if constexpr (Queries > 1) std::fill_n(scores, page_tokens * largest_together, 0.0f);
  for_each_batch(slots_at(page, task.model.offsets.k_slots), count, scratch, [&](std::size_t many) {
    set_slot_angles(task.model.rotation, many, scratch);
#pragma GCC unroll 4
    for (std::size_t i = 0; i < many; ++i) {
      std::size_t const index = scratch.slots[i].index, member = key_slot::member(index);
      slot_row<Queries>(scores, key_slot::token(index)) +=
          scratch.slot_cos[i] * slot_row<Queries>(scratch.members, member) +
          scratch.slot_sin[i] * slot_row<Queries>(scratch.members, key_slot::partner(member));
    }
  });
  if constexpr (Queries > 1) add_scores_by_token<Queries>(scores, scratch, first_token);
}

/// out += p · residual, kept apart by channel and query until the end.
template <std::size_t Queries>
void add_value_slots(split_task const& task, std::span<std::byte const* const> pages, query_chunk& chunk,
                     kernel_scratch& scratch) {
  constexpr std::size_t parts = slot_parts(Queries);
  std::size_t const count = task.model.geometry.v_slots, part_floats = task.head_dim() * slot_lanes(Queries);
  if (count == 0) return;
  float* p = scratch.scores[0];
  if constexpr (Queries > 1) {
    p = scratch.by_token;
    for (std::size_t t = 0; t < pages.size() * page_tokens; t += lanes)
      store_lanes<Queries>(p + t * slot_lanes(Queries), [&](std::size_t n) { return load(scratch.scores[n] + t); });
  }
  for (std::byte const* const page : pages) {
    for_each_batch(slots_at(page, task.model.offsets.v_slots), count, scratch, [&](std::size_t many) {
      for (std::size_t i = 0; i < many; i += lanes) store(scratch.slot_cos + i, load_residuals(scratch.slots + i));
      for (std::size_t first = 0; first < many; first += parts)
#pragma GCC unroll 4
        for (std::size_t part = 0; part < parts; ++part) {
          std::size_t const index = scratch.slots[first + part].index;
          slot_row<Queries>(chunk.sparse_out + part * part_floats, value_slot::channel(index)) +=
              scratch.slot_cos[first + part] * slot_row<Queries>(p, value_slot::token(index));
        }
    });
    p += page_tokens * slot_lanes(Queries);
  }
}
