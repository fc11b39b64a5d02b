// What slots add to what the codes say: a residual each, of one element.

/// `use(index, residual)` for each slot. Residuals become floats sixteen at a time.
template <class F>
inline void for_each_slot(outlier const* slots, std::size_t count, kernel_scratch& scratch, F&& use) {
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store(scratch.slots, load_residuals(slots + i));
    for (std::size_t lane = 0; lane < lanes; ++lane) use(std::size_t{slots[i + lane].index}, scratch.slots[lane]);
  }
  for (; i < count; ++i) use(std::size_t{slots[i].index}, to_float(slots[i].residual));
}

inline outlier const* slots_at(std::byte const* page, std::size_t offset) {
  return reinterpret_cast<outlier const*>(page + offset);
}

/// What each member of a pair meets of the queries at a page's base, [2 · pairs, {cos, sin}, Queries]: the first
/// (A, B), the second (B, −A).
template <std::size_t Queries>
inline void set_members(query_chunk const& chunk, std::size_t pairs, float* members) {
  for (std::size_t pair = 0; pair < pairs; ++pair)
    for (std::size_t n = 0; n < Queries; ++n) {
      float const a = chunk.queries[n].a[pair], b = chunk.queries[n].b[pair];
      float* const to = members + pair * 4 * Queries + n;
      to[0] = a;
      to[Queries] = b;
      to[2 * Queries] = b;
      to[3 * Queries] = -a;
    }
}

/// score_j += residual · (member at the page's base, turned by j)
template <std::size_t Queries>
void add_key_slots(split_task const& task, std::byte const* page, query_chunk const& chunk, kernel_scratch& scratch,
                   std::size_t first_token) {
  std::size_t const count = task.model.geometry.k_slots;
  if (count == 0) return;
  set_members<Queries>(chunk, task.pairs(), scratch.members);
  float const* const angles = task.model.rotation.by_pair.data();
  for_each_slot(slots_at(page, task.model.offsets.k_slots), count, scratch, [&](std::size_t index, float residual) {
    std::size_t const token = key_slot::token(index), member = key_slot::member(index);
    float const* const angle = angles + (member / 2 * page_tokens + token) * 2;
    float const* const of_member = scratch.members + member * 2 * Queries;
    float const c = residual * angle[0], s = residual * angle[1];
    for (std::size_t n = 0; n < Queries; ++n)
      scratch.scores[n][first_token + token] += c * of_member[n] + s * of_member[Queries + n];
  });
}

/// out += p · residual, kept apart by channel and query until the end.
template <std::size_t Queries>
void add_value_slots(split_task const& task, std::span<std::byte const* const> pages, query_chunk& chunk,
                     kernel_scratch& scratch) {
  std::size_t const count = task.model.geometry.v_slots;
  if (count == 0) return;
  float const* p = scratch.scores[0];
  if constexpr (Queries > 1) {
    for (std::size_t t = 0; t < pages.size() * page_tokens; ++t)
      for (std::size_t n = 0; n < Queries; ++n) scratch.by_token[t * Queries + n] = scratch.scores[n][t];
    p = scratch.by_token;
  }
  for (std::byte const* const page : pages) {
    for_each_slot(slots_at(page, task.model.offsets.v_slots), count, scratch, [&](std::size_t index, float residual) {
      float* const out = chunk.sparse_out + value_slot::channel(index) * Queries;
      float const* const of_token = p + value_slot::token(index) * Queries;
      for (std::size_t n = 0; n < Queries; ++n) out[n] += of_token[n] * residual;
    });
    p += page_tokens * Queries;
  }
}
