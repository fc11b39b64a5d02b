// Up to 64 tokens as they are: keys are turned in floats by their place in the tile.

/// 16 pairs of a row of channels.
template <class T>
inline void load_pairs(T const* row, pair_access access, std::size_t pair, std::size_t pairs, floats& a, floats& b) {
  if (access == pair_access::halves) {
    a = load(row + pair);
    b = load(row + pairs + pair);
  } else {
    separate(load(row + 2 * pair), load(row + 2 * pair + lanes), a, b);
  }
}

inline float as_float(half x) { return to_float(x); }
inline float as_float(float x) { return x; }

/// A row's pairs, one by one, where no vector of them can be loaded.
template <class T>
void gather_pairs(T const* row, page_geometry const& geometry, float* a, float* b) {
  for (std::size_t pair = 0; pair < geometry.head_dim / 2; ++pair) {
    auto const [first, second] = pair_of(geometry, pair);
    a[pair] = as_float(row[first]);
    b[pair] = as_float(row[second]);
  }
}

/// q · R(j) k_j for the tokens j of a tile. `k`: [tokens, stride]; `scores`: [Queries], each [page_tokens].
template <std::size_t Queries, class T>
void score_exact_keys(split_task const& task, view2d<T const> k, query_chunk const& chunk, kernel_scratch& scratch,
                      read_ahead const& ahead) {
  rotation_tables const& rotation = task.model.rotation;
  std::size_t const pairs = task.pairs(), all_pairs = padded(pairs);
  pair_access const access = task.model.access;
  for (std::size_t first = 0; first < page_tokens; first += lanes) {
    for (std::size_t t = 0; t < lanes; ++t) {
      floats dots[Queries];
#pragma GCC unroll 4
      for (std::size_t n = 0; n < Queries; ++n) dots[n] = zero();
      if (first + t < k.rows) {
        T const* const row = k.row(first + t).data();
        float const* const cos = rotation.cos.data() + (first + t) * all_pairs;
        float const* const sin = rotation.sin.data() + (first + t) * all_pairs;
        if (access == pair_access::gathered)
          gather_pairs(row, task.model.geometry, scratch.gathered_a, scratch.gathered_b);
        for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
          floats a, b;
          if (access == pair_access::gathered) {
            a = load(scratch.gathered_a + pair);
            b = load(scratch.gathered_b + pair);
          } else {
            load_pairs(row, access, pair, pairs, a, b);
          }
          floats const c = load(cos + pair), s = load(sin + pair);
          floats const turned_a = fms(a, c, b * s), turned_b = fma(b, c, a * s);
#pragma GCC unroll 4
          for (std::size_t n = 0; n < Queries; ++n) {
            query_pairs const& q = chunk.queries[n].pairs;
            dots[n] = fma(turned_b, load(q.b + pair), fma(turned_a, load(q.a + pair), dots[n]));
          }
        }
      }
      ahead.step(first + t);
#pragma GCC unroll 4
      for (std::size_t n = 0; n < Queries; ++n) store(scratch.partial_dots[n][t], dots[n]);
    }
    for (std::size_t n = 0; n < Queries; ++n) store(scratch.scores[n] + first, sum_each(scratch.partial_dots[n]));
  }
}

/// out += Σ p · v. `Vectors` of 16 channels at once.
template <std::size_t Queries, std::size_t Vectors, class T>
void add_exact_values(view2d<T const> v, std::size_t channel, query_chunk& chunk, kernel_scratch const& scratch,
                      read_ahead const& ahead) {
  floats out[Queries][Vectors];
#pragma GCC unroll 4
  for (std::size_t n = 0; n < Queries; ++n)
#pragma GCC unroll 8
    for (std::size_t i = 0; i < Vectors; ++i) out[n][i] = load(chunk.queries[n].out + channel + lanes * i);
  for (std::size_t t = 0; t < v.rows; ++t) {
    T const* const row = v.row(t).data() + channel;
    if (channel == 0) ahead.step(page_tokens + t);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < Vectors; ++i) {
      floats const x = load(row + lanes * i);
#pragma GCC unroll 4
      for (std::size_t n = 0; n < Queries; ++n) out[n][i] = fma(all(scratch.scores[n][t]), x, out[n][i]);
    }
  }
#pragma GCC unroll 4
  for (std::size_t n = 0; n < Queries; ++n)
#pragma GCC unroll 8
    for (std::size_t i = 0; i < Vectors; ++i) store(chunk.queries[n].out + channel + lanes * i, out[n][i]);
}

/// `ahead`: touches what comes next while this is computed.
template <std::size_t Queries, class T>
void attend_exact_tile(split_task const& task, view2d<T const> k, view2d<T const> v, run where, tile_place const& place,
                       query_chunk& chunk, kernel_scratch& scratch, read_ahead const& ahead) {
  std::size_t const d = task.head_dim();
  score_exact_keys<Queries>(task, k, chunk, scratch, ahead);
  for (std::size_t n = 0; n < Queries; ++n) {
    auto const seen = visible_in(task.what.queries, chunk.queries[n].row, where, place);
    bool const any = mask(scratch.scores[n], page_tokens, seen);
    softmax_step(chunk, n, scratch.scores[n], page_tokens, d, any);
  }
  constexpr std::size_t vectors = Queries == 1 ? 8 : 4;
  std::size_t channel = 0;
  for (; channel + lanes * vectors <= d; channel += lanes * vectors)
    add_exact_values<Queries, vectors>(v, channel, chunk, scratch, ahead);
  for (; channel < d; channel += lanes) add_exact_values<Queries, 1>(v, channel, chunk, scratch, ahead);
}
