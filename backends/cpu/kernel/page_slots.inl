// What slots add to what the codes say: a residual each, of one element.

inline outlier const* slots_at(std::byte const* page, std::size_t offset) {
  return reinterpret_cast<outlier const*>(page + offset);
}

/// `[rows, Lanes]` at `x`.
template <std::size_t Queries>
inline auto& slot_row(float* x, std::size_t row) {
  return reinterpret_cast<slot_floats<slot_lanes(Queries)>*>(x)[row];
}

/// Sixteen rows of queries' numbers side by side, missing queries as zeros. `x(n)`: 16 numbers of query n.
template <std::size_t Queries, class X>
inline void store_side_by_side(float* to, X&& x) {
  if constexpr (Queries == 1) {
    store(to, x(0));
  } else {
    floats all_queries[largest_together];
    for (std::size_t n = 0; n < largest_together; ++n) all_queries[n] = n < Queries ? x(n) : zero();
    store_transposed(to, all_queries);
  }
}

/// The unit of a query's pairs in 16 bits: a turn does not change it.
inline void set_slot_unit(query_state& q, std::size_t all_pairs) {
  floats longest = zero();
  for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
    floats const a = load(q.pairs.a + pair), b = load(q.pairs.b + pair);
    longest = max(longest, fma(a, a, b * b));
  }
  q.slot_unit = std::max(std::sqrt(largest(longest)), smallest_unit) / rotation_tables::slot_unit16;
}

/// The queries' pairs (A, B) at the page's base: a slot of a key's first adds A cos + B sin, one of its second
/// B cos − A sin.
template <std::size_t Queries>
inline void set_members(query_chunk const& chunk, std::size_t all_pairs, std::int16_t* members) {
  auto const put = [&](std::size_t row, auto&& pair_of_query) {
    store_side_by_side<Queries>(reinterpret_cast<float*>(members + row * slot_lanes(Queries) * 2), pair_of_query);
  };
  for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
    ints a[Queries], b[Queries], minus_a[Queries];
    for (std::size_t n = 0; n < Queries; ++n) {
      query_state const& q = chunk.queries[n];
      floats const per_unit = all(1 / q.slot_unit), x = load(q.pairs.a + pair) * per_unit;
      a[n] = rounded(x);
      minus_a[n] = rounded(x * all(-1.0f));
      b[n] = rounded(load(q.pairs.b + pair) * per_unit);
    }
    put(pair, [&](std::size_t n) { return pair_low(a[n], b[n]); });
    put(key_slot::most_pairs + pair, [&](std::size_t n) { return pair_low(b[n], minus_a[n]); });
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
inline void add_scores_by_token(float const* by_token, query_chunk const& chunk, kernel_scratch& scratch,
                                std::size_t first_token) {
  for (std::size_t t = 0; t < page_tokens; t += lanes) {
    float const* const from = by_token + t * largest_together;
    floats even[2], odd[2], x[largest_together];
    for (std::size_t i = 0; i < 2; ++i)
      separate(load(from + 2 * lanes * i), load(from + 2 * lanes * i + lanes), even[i], odd[i]);
    separate(even[0], even[1], x[0], x[2]);
    separate(odd[0], odd[1], x[1], x[3]);
    for (std::size_t n = 0; n < Queries; ++n) {
      float* const score = scratch.scores[n] + first_token + t;
      store(score, fma(x[n], all(chunk.queries[n].slot_unit), load(score)));
    }
  }
}

/// `add(slot, which of a few)` for each, and `step(index)` for every few of them.
template <class Add, class Step>
[[gnu::always_inline]] inline void for_each_slot(std::size_t count, Add&& add, Step&& step) {
  constexpr std::size_t few = page_steps::slots_of_step;
  std::size_t i = 0;
  for (; i + few <= count; i += few) {
    step(i / few);
#pragma GCC unroll 4
    for (std::size_t k = 0; k < few; ++k) add(i + k, k);
  }
  for (; i < count; ++i) add(i, 0);
}

/// score_j += residual · (member at the page's base, turned by j)
template <std::size_t Queries>
void add_key_slots(split_task const& task, std::byte const* page, query_chunk const& chunk, kernel_scratch& scratch,
                   std::size_t first_token, read_ahead const& ahead) {
  std::size_t const count = task.model.geometry.k_slots;
  if (count == 0) return;
  constexpr std::size_t row_shorts = 2 * slot_lanes(Queries);
  set_members<Queries>(chunk, padded(task.pairs()), scratch.members);
  float* const scores = Queries == 1 ? scratch.scores[0] + first_token : scratch.by_token;
  if constexpr (Queries > 1)
    for (std::size_t i = 0; i < page_tokens * largest_together; i += lanes) store(scores + i, zero());
  std::span const slots(slots_at(page, task.model.offsets.k_slots), count);
  constexpr float unit = 1.0f / rotation_tables::slot_unit16;
  set_residuals(slots, Queries == 1 ? unit * chunk.queries[0].slot_unit : unit, scratch.residuals);
  std::int16_t const* const angles = task.model.rotation.by_slot.data();
  for_each_slot(
      count,
      [&](std::size_t i, std::size_t) __attribute__((always_inline)) {
        std::size_t const index = slots[i].index;
        slot_row<Queries>(scores, key_slot::token(index)) +=
            scratch.residuals[i] * dot_each<slot_lanes(Queries)>(scratch.members + key_slot::member(index) * row_shorts,
                                                                 angles + 2 * key_slot::angle(index));
      },
      [&](std::size_t step) { ahead.step(task.model.steps.key_slots + step); });
  if constexpr (Queries > 1) add_scores_by_token<Queries>(scores, chunk, scratch, first_token);
}

/// out += p · residual, kept apart by channel and query until the end.
template <std::size_t Queries>
void add_value_slots(split_task const& task, std::span<std::byte const* const> pages, query_chunk& chunk,
                     kernel_scratch& scratch, std::span<read_ahead const> ahead) {
  static_assert(page_steps::slots_of_step == slot_parts(1));
  constexpr std::size_t part_floats = largest_head_dim * slot_lanes(Queries);
  std::size_t const count = task.model.geometry.v_slots;
  if (count == 0) return;
  float* p = scratch.scores[0];
  if constexpr (Queries > 1) {
    p = scratch.by_token;
    for (std::size_t t = 0; t < pages.size() * page_tokens; t += lanes)
      store_side_by_side<Queries>(p + t * slot_lanes(Queries),
                                  [&](std::size_t n) { return load(scratch.scores[n] + t); });
  }
  for (std::size_t page = 0; page < pages.size(); ++page) {
    std::span const slots(slots_at(pages[page], task.model.offsets.v_slots), count);
    set_residuals(slots, 1, scratch.residuals);
    auto const add = [&](std::size_t i, std::size_t part) __attribute__((always_inline)) {
      std::size_t const index = slots[i].index;
      slot_row<Queries>(chunk.sparse_out + part % slot_parts(Queries) * part_floats, value_slot::channel(index)) +=
          scratch.residuals[i] * slot_row<Queries>(p, value_slot::token(index));
    };
    for_each_slot(count, add, [&](std::size_t step) { ahead[page].step(task.model.steps.value_slots + step); });
    p += page_tokens * slot_lanes(Queries);
  }
}
