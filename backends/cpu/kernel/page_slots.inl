// What slots add to what the codes say: a residual each, of one element.

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

/// Residuals as floats, times `unit`. Nothing behind the slots is read: the last ones go together with some before
/// them.
inline void set_residuals(std::span<outlier const> slots, float unit, float* out) {
  if (slots.size() < lanes) {
    for (std::size_t i = 0; i < slots.size(); ++i) out[i] = to_float(slots[i].residual) * unit;
    return;
  }
  std::size_t const last = slots.size() - lanes;
  for (std::size_t i = 0; i < last; i += lanes) store(out + i, load_residuals(&slots[i]) * all(unit));
  store(out + last, load_residuals(&slots[last]) * all(unit));
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
  std::span const slots(slots_at(page, task.model.offsets.k_slots), count);
  set_residuals(slots, 1.0f / rotation_tables::slot_unit16, scratch.residuals);
  std::int16_t const* const table = task.model.rotation.by_slot.data();
#pragma GCC unroll 4
  for (std::size_t i = 0; i < count; ++i) {
    std::size_t const index = slots[i].index, member = key_slot::member(index);
    float const cos = table[2 * index], sin = table[2 * index + 1];
    auto const& x = slot_row<Queries>(scratch.members, member);
    auto const& y = slot_row<Queries>(scratch.members, key_slot::partner(member));
    slot_row<Queries>(scores, key_slot::token(index)) += scratch.residuals[i] * (cos * x + sin * y);
  }
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
    std::span const slots(slots_at(page, task.model.offsets.v_slots), count);
    set_residuals(slots, 1, scratch.residuals);
    auto const add = [&](std::size_t i, std::size_t part) {
      std::size_t const index = slots[i].index;
      slot_row<Queries>(chunk.sparse_out + part * part_floats, value_slot::channel(index)) +=
          scratch.residuals[i] * slot_row<Queries>(p, value_slot::token(index));
    };
    std::size_t i = 0;
    for (; i + parts <= count; i += parts)
#pragma GCC unroll 4
      for (std::size_t part = 0; part < parts; ++part) add(i + part, part);
    for (; i < count; ++i) add(i, 0);
    p += page_tokens * slot_lanes(Queries);
  }
}
