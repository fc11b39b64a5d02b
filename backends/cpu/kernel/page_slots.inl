// What slots add to what the codes say: a residual each, of one element.

/// `use(index, residual)` for each slot. Residuals become floats sixteen at a time.
template <class F>
inline void for_each_slot(outlier const* slots, std::size_t count, kernel_scratch& scratch, F&& use) {
  for (std::size_t done = 0; done < count;) {
    std::size_t const many = std::min(lanes, count - done);
    if (count < lanes) {
      for (std::size_t i = 0; i < many; ++i) scratch.slots[i] = to_float(slots[i].residual);
    } else {
      // The last ones together with some before them: nothing behind the slots may be read.
      store(scratch.slots, load_residuals(slots + std::min(done, count - lanes)));
    }
    float const* const residuals = scratch.slots + (count < lanes ? 0 : done - std::min(done, count - lanes));
    for (std::size_t i = 0; i < many; ++i) use(std::size_t{slots[done + i].index}, residuals[i]);
    done += many;
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

/// A, B and −A of every pair: the first of a pair meets (A, B), the second (B, −A).
template <std::size_t Queries>
inline void set_members(query_chunk const& chunk, std::size_t all_pairs, float* members) {
  constexpr std::size_t count = slot_lanes(Queries);
  for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
    auto const a = [&](std::size_t n) { return load(chunk.queries[n].a + pair); };
    store_lanes<Queries>(members + pair * count, a);
    store_lanes<Queries>(members + (largest_pairs + pair) * count,
                         [&](std::size_t n) { return load(chunk.queries[n].b + pair); });
    store_lanes<Queries>(members + (2 * largest_pairs + pair) * count, [&](std::size_t n) { return zero() - a(n); });
  }
}

/// score_j += residual · (member at the page's base, turned by j)
template <std::size_t Queries>
[[gnu::flatten]] void add_key_slots(split_task const& task, std::byte const* page, query_chunk const& chunk,
                                    kernel_scratch& scratch, std::size_t first_token) {
  std::size_t const count = task.model.geometry.k_slots;
  if (count == 0) return;
  set_members<Queries>(chunk, padded(task.pairs()), scratch.members);
  float const* const angles = task.model.rotation.by_pair.data();
  float* const scores = Queries == 1 ? scratch.scores[0] + first_token : scratch.by_token;
  if constexpr (Queries > 1) std::fill_n(scores, page_tokens * slot_lanes(Queries), 0.0f);
  for_each_slot(slots_at(page, task.model.offsets.k_slots), count, scratch, [&](std::size_t index, float residual) {
    std::size_t const member = key_slot::member(index);
    float const* const angle = angles + key_slot::angle(index) * 2;
    auto const& x = slot_row<Queries>(scratch.members, member);
    auto const& y = slot_row<Queries>(scratch.members, member + largest_pairs);
    slot_row<Queries>(scores, key_slot::token(index)) += residual * angle[0] * x + residual * angle[1] * y;
  });
  if constexpr (Queries > 1)
    for (std::size_t t = 0; t < page_tokens; ++t)
      for (std::size_t n = 0; n < Queries; ++n)
        scratch.scores[n][first_token + t] += scores[t * slot_lanes(Queries) + n];
}

/// out += p · residual, kept apart by channel and query until the end.
template <std::size_t Queries>
[[gnu::flatten]] void add_value_slots(split_task const& task, std::span<std::byte const* const> pages,
                                      query_chunk& chunk, kernel_scratch& scratch) {
  std::size_t const count = task.model.geometry.v_slots;
  if (count == 0) return;
  float* p = scratch.scores[0];
  if constexpr (Queries > 1) {
    p = scratch.by_token;
    for (std::size_t t = 0; t < pages.size() * page_tokens; t += lanes)
      store_lanes<Queries>(p + t * slot_lanes(Queries), [&](std::size_t n) { return load(scratch.scores[n] + t); });
  }
  for (std::byte const* const page : pages) {
    for_each_slot(slots_at(page, task.model.offsets.v_slots), count, scratch, [&](std::size_t index, float residual) {
      slot_row<Queries>(chunk.sparse_out, value_slot::channel(index)) +=
          residual * slot_row<Queries>(p, value_slot::token(index));
    });
    p += page_tokens * slot_lanes(Queries);
  }
}
