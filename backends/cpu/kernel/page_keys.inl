// Scores of a sealed page's keys, out of their codes, in integers.
//
// A pair of keys at token j is k = S (u − 64) + z in each channel, and with (A, B) the query's pair at the page's base
//
//     score_j = Σ over pairs of A (k_a cos jθ − k_b sin jθ) + B (k_b cos jθ + k_a sin jθ)
//
// Turned query: (A k_a + B k_b) cos jθ + (B k_a − A k_b) sin jθ, where A S and B S are 8-bit entries.
// Turned keys: the two brackets above are 16-bit numbers, the query has 12 bits, and all of its heads share the keys.

inline constexpr float largest_entry8 = 127, largest_entry12 = 2000, largest_int16 = 32000;

/// Sixteen pairs share a unit, so that their products add up in 32 bits.
inline constexpr std::size_t segment_chunks = 4;

/// Units of a query whose 8-bit entries multiply key pairs: no entry and no sum of a pair is too large for its bits.
/// A turn keeps a pair's length, so they hold at every base.
inline void set_units_of_pair_entries(query_state& q, key_head const& keys, std::size_t all_pairs) {
  for (std::size_t first = 0; first < all_pairs; first += lanes) {
    float unit = 1e-30f;
    for (std::size_t pair = first; pair < first + lanes; ++pair) {
      float const length = std::sqrt(q.a[pair] * q.a[pair] + q.b[pair] * q.b[pair]);
      unit = std::max({unit, length * keys.scale_a[pair] / largest_entry8, length * keys.scale_b[pair] / largest_entry8,
                       length * keys.reach[pair] / largest_int16});
    }
    q.unit[first / lanes] = unit;
  }
}

inline void set_pair_entries(query_state const& q, key_head const& keys, std::size_t all_pairs, query_entries& out) {
  floats const origin = all(float{key_origin}), negative = all(-1.0f);
  auto const put = [&](floats to_a, floats to_b, floats zero_a, floats zero_b, std::size_t pair, std::int32_t* entries,
                       std::int32_t* offsets) {
    floats const a = round(to_a), b = round(to_b);
    store_low_pairs(reinterpret_cast<std::int8_t*>(entries + pair / 2), rounded(a), rounded(b));
    store_low(reinterpret_cast<std::int16_t*>(offsets + pair / 2), rounded(zero_a + zero_b - origin * (a + b)));
  };
  for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
    floats const per_unit = all(1 / q.unit[pair / lanes]), a = load(q.a + pair) * per_unit,
                 b = load(q.b + pair) * per_unit;
    floats const scale_a = load(&keys.scale_a[pair]), scale_b = load(&keys.scale_b[pair]);
    floats const zero_a = load(&keys.zero_a[pair]), zero_b = load(&keys.zero_b[pair]), minus_a = a * negative;
    put(a * scale_a, b * scale_b, a * zero_a, b * zero_b, pair, out.a, out.a_offset);
    put(b * scale_a, minus_a * scale_b, b * zero_a, minus_a * zero_b, pair, out.b, out.b_offset);
  }
}

/// Adds one segment's integer sums to the scores of 64 tokens.
template <std::size_t Queries>
inline void add_segment(ints const (&dots)[Queries][4], query_chunk const& chunk, std::size_t segment, float factor,
                        floats (&sums)[Queries][4]) {
  for (std::size_t n = 0; n < Queries; ++n)
    for (std::size_t i = 0; i < 4; ++i)
      sums[n][i] = fma(to_floats(dots[n][i]), all(chunk.queries[n].unit[segment] * factor), sums[n][i]);
}

template <std::size_t Queries>
inline void store_scores(floats const (&sums)[Queries][4], kernel_scratch& scratch, std::size_t first_token) {
  for (std::size_t n = 0; n < Queries; ++n)
    for (std::size_t i = 0; i < 4; ++i) store(scratch.scores[n] + first_token + lanes * i, sums[n][i]);
}

template <int Bits, std::size_t Queries>
void score_by_turned_query(split_task const& task, std::uint8_t const* codes, code_table<Bits> const& table,
                           query_chunk const& chunk, kernel_scratch& scratch, std::size_t first_token,
                           read_ahead& ahead) {
  rotation_tables const& rotation = task.model.rotation;
  std::size_t const chunks = task.head_dim() / 8;
  floats sums[Queries][4];
  for (auto& of_query : sums)
    for (floats& it : of_query) it = zero();
  for (std::size_t first = 0; first < chunks; first += segment_chunks) {
    ints dots[Queries][4];
    for (auto& of_query : dots)
      for (ints& it : of_query) it = zero_ints();
    for (std::size_t at = first; at < std::min(chunks, first + segment_chunks); ++at) {
      bytes keys[8];
      unpack<Bits>(codes + at * packed_block_bytes<Bits>, table, keys);
      ahead.step(prefetch);
      for (std::size_t half_chunk = 0; half_chunk < 2; ++half_chunk) {
        std::size_t const two_pairs = 2 * at + half_chunk;
        std::int16_t const* const cos = rotation.cos16.data() + two_pairs * 2 * page_tokens;
        std::int16_t const* const sin = rotation.sin16.data() + two_pairs * 2 * page_tokens;
        for (std::size_t n = 0; n < Queries; ++n) {
          query_entries const& q = scratch.entries[n];
          bytes const a = repeat_bytes(q.a[two_pairs]), b = repeat_bytes(q.b[two_pairs]);
          shorts const a_offset = repeat_shorts(q.a_offset[two_pairs]), b_offset = repeat_shorts(q.b_offset[two_pairs]);
          for (std::size_t i = 0; i < 4; ++i) {
            bytes const k = keys[half_chunk * 4 + i];
            dots[n][i] = dot(dots[n][i], multiply_pairs(k, a) + a_offset, load_shorts(cos + 32 * i));
            dots[n][i] = dot(dots[n][i], multiply_pairs(k, b) + b_offset, load_shorts(sin + 32 * i));
          }
        }
      }
    }
    add_segment(dots, chunk, first / segment_chunks, 1.0f / rotation_tables::unit16, sums);
  }
  store_scores(sums, scratch, first_token);
}

/// The entries that turn the keys of one head: once for a layer, or once for a task.
inline void build_turns(key_head const& keys, rotation_tables const& rotation, key_turns& out) {
  std::size_t const all_pairs = padded(rotation.pairs);
  out.resize(rotation.pairs);
  for (std::size_t pair = 0; pair < rotation.pairs; ++pair) {
    float const scale_a = keys.scale_a[pair], scale_b = keys.scale_b[pair];
    float const unit =
        std::max({1e-30f, scale_a / largest_entry8, scale_b / largest_entry8, keys.reach[pair] / largest_int16});
    out.unit[pair] = unit;
    float const a = scale_a / unit, b = scale_b / unit, zero_a = keys.zero_a[pair] / unit,
                zero_b = keys.zero_b[pair] / unit;
    for (std::size_t token = 0; token < page_tokens; ++token) {
      float const c = rotation.cos[token * all_pairs + pair], s = rotation.sin[token * all_pairs + pair];
      std::size_t const at = (pair / 2 * page_tokens + token) * 2 + pair % 2;
      auto const put = [&](float by_a, float by_b, float zero, std::int8_t* entries, std::int16_t& offset) {
        float const first = std::nearbyint(by_a), second = std::nearbyint(by_b);
        entries[0] = static_cast<std::int8_t>(first);
        entries[1] = static_cast<std::int8_t>(second);
        // Alone it may leave 16 bits; the sum with the products does not, and both wrap.
        offset = static_cast<std::int16_t>(static_cast<int>(std::nearbyint(zero - key_origin * (first + second))));
      };
      put(a * c, -b * s, zero_a * c - zero_b * s, &out.a[2 * at], out.a_offset[at]);
      put(a * s, b * c, zero_a * s + zero_b * c, &out.b[2 * at], out.b_offset[at]);
    }
  }
}

inline void set_units_of_turned_keys(query_state& q, key_turns const& turns, std::size_t all_pairs) {
  for (std::size_t first = 0; first < all_pairs; first += lanes) {
    float unit = 1e-30f;
    for (std::size_t pair = first; pair < first + lanes; ++pair)
      unit = std::max(unit, std::sqrt(q.a[pair] * q.a[pair] + q.b[pair] * q.b[pair]) * turns.unit[pair]);
    q.unit[first / lanes] = unit / largest_entry12;
  }
}

inline void set_turned_entries(query_state const& q, key_turns const& turns, std::size_t all_pairs,
                               query_entries& out) {
  for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
    floats const scale = load(&turns.unit[pair]) * all(1 / q.unit[pair / lanes]);
    store_low(reinterpret_cast<std::int16_t*>(out.a + pair / 2), rounded(load(q.a + pair) * scale));
    store_low(reinterpret_cast<std::int16_t*>(out.b + pair / 2), rounded(load(q.b + pair) * scale));
  }
}

/// Keys of 16 tokens × 2 pairs, turned to the page's base.
struct turned_block {
  shorts a, b;
};
inline turned_block turn_block(bytes keys, key_turns const& turns, std::size_t block) {
  return {multiply_pairs(keys, load_bytes(&turns.a[64 * block])) + load_shorts(&turns.a_offset[32 * block]),
          multiply_pairs(keys, load_bytes(&turns.b[64 * block])) + load_shorts(&turns.b_offset[32 * block])};
}

/// `keys_at(chunk, blocks)` gives the eight blocks of a chunk.
template <std::size_t Queries, class KeysAt>
inline void score_turned_blocks(split_task const& task, query_chunk const& chunk, kernel_scratch& scratch,
                                std::size_t first_token, KeysAt&& keys_at) {
  std::size_t const chunks = task.head_dim() / 8;
  floats sums[Queries][4];
  for (auto& of_query : sums)
    for (floats& it : of_query) it = zero();
  for (std::size_t first = 0; first < chunks; first += segment_chunks) {
    ints dots[Queries][4];
    for (auto& of_query : dots)
      for (ints& it : of_query) it = zero_ints();
    for (std::size_t at = first; at < std::min(chunks, first + segment_chunks); ++at)
      keys_at(at, [&](std::size_t i, turned_block const& k) {
        std::size_t const two_pairs = 2 * at + i / 4;
        for (std::size_t n = 0; n < Queries; ++n) {
          query_entries const& q = scratch.entries[n];
          dots[n][i % 4] = dot(dots[n][i % 4], k.a, repeat_shorts(q.a[two_pairs]));
          dots[n][i % 4] = dot(dots[n][i % 4], k.b, repeat_shorts(q.b[two_pairs]));
        }
      });
    add_segment(dots, chunk, first / segment_chunks, 1.0f, sums);
  }
  store_scores(sums, scratch, first_token);
}

template <int Bits, std::size_t Queries>
void score_turned_keys(split_task const& task, std::uint8_t const* codes, code_table<Bits> const& table,
                       key_turns const& turns, query_chunk const& chunk, kernel_scratch& scratch,
                       std::size_t first_token, read_ahead& ahead) {
  score_turned_blocks<Queries>(task, chunk, scratch, first_token, [&](std::size_t at, auto&& use) {
    bytes keys[8];
    unpack<Bits>(codes + at * packed_block_bytes<Bits>, table, keys);
    ahead.step(prefetch);
    for (std::size_t i = 0; i < 8; ++i) use(i, turn_block(keys[i], turns, 8 * at + i));
  });
}

/// The same from keys that `turn_page` left in the scratch, for more queries than go through at once.
template <std::size_t Queries>
void score_stored_keys(split_task const& task, query_chunk const& chunk, kernel_scratch& scratch) {
  score_turned_blocks<Queries>(task, chunk, scratch, 0, [&](std::size_t at, auto&& use) {
    for (std::size_t i = 0; i < 8; ++i)
      use(i, turned_block{load_shorts(scratch.turned_a + 32 * (8 * at + i)),
                          load_shorts(scratch.turned_b + 32 * (8 * at + i))});
  });
}

template <int Bits>
void turn_page(split_task const& task, std::uint8_t const* codes, code_table<Bits> const& table, key_turns const& turns,
               kernel_scratch& scratch, read_ahead& ahead) {
  for (std::size_t at = 0; at < task.head_dim() / 8; ++at) {
    bytes keys[8];
    unpack<Bits>(codes + at * packed_block_bytes<Bits>, table, keys);
    ahead.step(prefetch);
    for (std::size_t i = 0; i < 8; ++i) {
      auto const [a, b] = turn_block(keys[i], turns, 8 * at + i);
      store_shorts(scratch.turned_a + 32 * (8 * at + i), a);
      store_shorts(scratch.turned_b + 32 * (8 * at + i), b);
    }
  }
}
