// Queries: turning them to a tile's base, and one step of the softmax.

/// 2^x for x from -126 to 0, by a polynomial on [-1/2, 1/2] that is off by 1e-7.
inline floats power_of_two(floats x) {
  floats const whole = round(x), f = x - whole;
  floats y = all(1.3390863e-3f);
  for (float const c : {9.6760320e-3f, 5.5503571e-2f, 2.4022107e-1f, 6.9314719e-1f, 1.0000001f}) y = fma(y, f, all(c));
  return scale_by_power(y, whole);
}

/// e^x for x ≤ 0; below -87, where it leaves the normal numbers, e^-87.
inline floats exp_below_zero(floats x) { return power_of_two(max(x, all(-87.0f)) * all(1.44269504f)); }

/// Multiplies pairs (a, b) by cos − i sin: a position further by that angle.
inline void turn_by(query_pairs& q, float const* cos, float const* sin, std::size_t padded_pairs) {
  for (std::size_t pair = 0; pair < padded_pairs; pair += lanes) {
    floats const a = load(q.a + pair), b = load(q.b + pair), c = load(cos + pair), s = load(sin + pair);
    store(q.a + pair, fma(a, c, b * s));
    store(q.b + pair, fms(b, c, a * s));
  }
}

/// Puts the original query, times the softmax scale, at the base that `angles` belong to.
inline void place_query(split_task const& task, query_state& state, float const* angles) {
  std::size_t const d = task.head_dim(), group = task.group(), pairs = task.pairs(), all_pairs = padded(pairs);
  auto const row = task.what.queries.first_row + state.row;
  float const* const from = task.args().q.row(row).data() + (task.what.kv_head * group + state.head) * d;
  float const scale = task.args().scale(d);
  query_pairs& q = state.pairs;
  std::fill_n(q.a, all_pairs, 0.0f);
  std::fill_n(q.b, all_pairs, 0.0f);
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    auto const [first, second] = pair_of(task.model.geometry, pair);
    q.a[pair] = scale * from[first];
    q.b[pair] = scale * from[second];
  }
  // The angles are those from the base to the query: the other way round.
  float const* const cos = angles + state.row * 2 * all_pairs;
  float const* const sin = cos + all_pairs;
  for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
    floats const a = load(q.a + pair), b = load(q.b + pair), c = load(cos + pair), s = load(sin + pair);
    store(q.a + pair, fms(a, c, b * s));
    store(q.b + pair, fma(b, c, a * s));
  }
}

inline void scale_in_place(float* x, std::size_t count, float by) {
  for (std::size_t i = 0; i < count; i += lanes) store(x + i, load(x + i) * all(by));
}

/// Scores become probabilities relative to the largest score so far; what was added up before is scaled to it. Returns
/// by what, for other sums. `scores`: [tokens], a multiple of 16; those of tokens that the query does not see are
/// −infinity. Where it sees none of them (`seen`), all probabilities are 0.
inline float softmax_step(query_chunk& chunk, std::size_t index, float* scores, std::size_t tokens, std::size_t d,
                          bool seen) {
  if (!seen) {
    std::fill_n(scores, tokens, 0.0f);
    return 1;
  }
  query_state& q = chunk.queries[index];
  floats most = load(scores);
  for (std::size_t t = lanes; t < tokens; t += lanes) most = max(most, load(scores + t));
  float const m = largest(most);
  float keep = 1;
  if (m > q.m) {
    keep = q.l == 0 ? 0.0f : std::exp(q.m - m);
    q.m = m;
    q.l *= keep;
    scale_in_place(q.out, d, keep);
    if (chunk.count == 1)
      for (std::size_t part = 0; part < slot_parts(1); ++part)
        scale_in_place(chunk.sparse_out + part * largest_head_dim, d, keep);
    else
      for (std::size_t i = index; i < d * largest_together; i += largest_together) chunk.sparse_out[i] *= keep;
  }
  floats total = zero();
  for (std::size_t t = 0; t < tokens; t += lanes) {
    floats const p = exp_below_zero(load(scores + t) - all(q.m));
    store(scores + t, p);
    total = total + p;
  }
  q.l += sum(total);
  return keep;
}

/// −infinity for the tokens that a query does not see. Whether it sees any.
inline bool mask(float* scores, std::size_t tokens, token_range seen) {
  constexpr float unseen = -std::numeric_limits<float>::infinity();
  if (seen.empty()) seen = {0, 0};
  std::fill(scores, scores + seen.first, unseen);
  std::fill(scores + seen.last, scores + tokens, unseen);
  return !seen.empty();
}
