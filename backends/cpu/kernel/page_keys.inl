// Scores of a sealed page's keys, out of their codes, in integers.
//
// A pair of keys at token j is k = S (u − 64) + z in each channel, and with (A, B) the query's pair at the page's base
//
//     score_j = Σ over pairs of A (k_a cos jθ − k_b sin jθ) + B (k_b cos jθ + k_a sin jθ)
//
// Turned query: (A k_a + B k_b) cos jθ + (B k_a − A k_b) sin jθ, where A S and B S are 8-bit entries.
// Turned keys: the two brackets above are 16-bit numbers, the query has 12 bits, and all of its heads share the keys.

// Loops over sums are unrolled by name: sums that are indexed by a variable would live in memory.

inline constexpr float largest_entry12 = 2000;

/// Sixteen pairs share a unit, so that their products add up in 32 bits.
inline constexpr std::size_t segment_chunks = 4;

/// Units of a query's entries: products of the longest pair in sixteen with its keys come to `entries` units of the
/// query's. A turn keeps a pair's length, so they hold at every base.
inline void set_units(query_pairs const& q, key_head const& keys, std::size_t all_pairs, float entries, float* units) {
  for (std::size_t first = 0; first < all_pairs; first += lanes) {
    float unit = smallest_unit;
    for (std::size_t pair = first; pair < first + lanes; ++pair)
      unit = std::max(unit, std::sqrt(q.a[pair] * q.a[pair] + q.b[pair] * q.b[pair]) * keys.unit[pair]);
    units[first / lanes] = unit / entries;
  }
}

inline void set_pair_entries(query_pairs const& q, float const* units, key_head const& keys, std::size_t all_pairs,
                             query_entries& out) {
  floats const origin = all(float{key_origin}), negative = all(-1.0f);
  auto const put = [&](floats to_a, floats to_b, floats zero_a, floats zero_b, std::size_t pair, std::int32_t* entries,
                       std::int32_t* offsets) {
    floats const a = round(to_a), b = round(to_b);
    store_low_pairs(reinterpret_cast<std::int8_t*>(entries + pair / 2), rounded(a), rounded(b));
    store_low(reinterpret_cast<std::int16_t*>(offsets + pair / 2), rounded(zero_a + zero_b - origin * (a + b)));
  };
  for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
    floats const per_unit = all(1 / units[pair / lanes]), a = load(q.a + pair) * per_unit,
                 b = load(q.b + pair) * per_unit;
    floats const scale_a = load(&keys.scale_a[pair]), scale_b = load(&keys.scale_b[pair]);
    floats const zero_a = load(&keys.zero_a[pair]), zero_b = load(&keys.zero_b[pair]), minus_a = a * negative;
    put(a * scale_a, b * scale_b, a * zero_a, b * zero_b, pair, out.a, out.a_offset);
    put(b * scale_a, minus_a * scale_b, b * zero_a, minus_a * zero_b, pair, out.b, out.b_offset);
  }
}

/// Sums of 64 tokens for each query, in parts that do not wait for each other.
template <std::size_t Queries, std::size_t Chains>
using key_sums = ints[Queries][Chains][4];

/// Adds one segment's integer sums to the scores of 64 tokens, or sets them where it is the first.
template <std::size_t Queries, std::size_t Chains>
[[gnu::always_inline]] inline void add_segment(key_sums<Queries, Chains> const& dots, query_chunk const& chunk,
                                               std::size_t first_chunk, float factor, kernel_scratch& scratch,
                                               std::size_t first_token) {
#pragma GCC unroll 4
  for (std::size_t n = 0; n < Queries; ++n)
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) {
      float* const score = scratch.scores[n] + first_token + lanes * i;
      float const unit = chunk.queries[n].unit[first_chunk / segment_chunks] * factor;
      floats sum = first_chunk == 0 ? zero() : load(score);
      for (std::size_t part = 0; part < Chains; ++part) sum = fma(to_floats(dots[n][part][i]), all(unit), sum);
      store(score, sum);
    }
}

/// `add_chunk(chunk of four pairs, sums)` for each from `first` to `last`; sums of chunks that share a unit go to the
/// scores together.
template <std::size_t Queries, std::size_t Chains, class AddChunk>
[[gnu::always_inline]] inline void score_chunks(std::size_t first, std::size_t last, query_chunk const& chunk,
                                                float factor, kernel_scratch& scratch, std::size_t first_token,
                                                AddChunk&& add_chunk) {
  while (first < last) {
    key_sums<Queries, Chains> dots;
#pragma GCC unroll 4
    for (std::size_t n = 0; n < Queries; ++n)
#pragma GCC unroll 2
      for (std::size_t part = 0; part < Chains; ++part)
#pragma GCC unroll 4
        for (std::size_t i = 0; i < 4; ++i) dots[n][part][i] = zero_ints();
    std::size_t const end = std::min(last, (first / segment_chunks + 1) * segment_chunks);
    for (std::size_t at = first; at < end; ++at) add_chunk(at, dots);
    add_segment<Queries, Chains>(dots, chunk, first, factor, scratch, first_token);
    first = end;
  }
}

/// `add_chunk(chunk, packed, table, sums)` for each of a head.
template <std::size_t Queries, std::size_t Chains, class Codes, class AddChunk>
[[gnu::always_inline]] inline void score_codes(split_task const& task, std::uint8_t const* codes, Codes const& keys,
                                               query_chunk const& chunk, float factor, kernel_scratch& scratch,
                                               std::size_t first_token, read_ahead const& ahead, AddChunk&& add_chunk) {
  keys.for_each_run(
      task.head_dim() / 8, [&](auto bits, std::size_t first, std::size_t last, std::size_t start,
                               auto&& table_at) __attribute__((always_inline)) {
        std::uint8_t const* packed = codes + start;
        score_chunks<Queries, Chains>(
            first, last, chunk, factor, scratch,
            first_token, [&](std::size_t at, key_sums<Queries, Chains> & dots) __attribute__((always_inline)) {
              ahead.step(at);
              auto const& table = Codes::held(table_at(at));
              add_chunk(at, packed, table, dots);
              packed += packed_block_bytes<bits()>;
            });
      });
}

template <std::size_t Queries, class Codes>
void score_by_turned_query(split_task const& task, std::uint8_t const* codes, Codes const& keys,
                           pair_angles const& angles, query_chunk const& chunk, kernel_scratch& scratch,
                           std::size_t first_token, read_ahead const& ahead) {
  constexpr std::size_t chains = held_sums >= 16 && Queries <= 2 ? 2 : 1;
  std::uint32_t const* const cos16 = angles.cos.data();
  std::uint32_t const* const sin16 = angles.sin.data();
  query_entries const* const entries = scratch.entries;
  constexpr float factor = 1.0f / rotation_tables::unit16;
  score_codes<Queries, chains>(
      task, codes, keys, chunk, factor, scratch, first_token, ahead,
      [&](std::size_t at, std::uint8_t const* packed, auto const& table, key_sums<Queries, chains>& dots)
          __attribute__((always_inline)) {
            unrolled<8>([&](auto block) __attribute__((always_inline)) {
              bytes const values = unpack_block<block()>(packed, table);
              std::size_t const two_pairs = 2 * at + block() / 4, first_angle = (two_pairs * 4 + block() % 4) * lanes;
              shorts const cos = load_shorts(cos16 + first_angle), sin = load_shorts(sin16 + first_angle);
#pragma GCC unroll 4
              for (std::size_t n = 0; n < Queries; ++n) {
                query_entries const& q = entries[n];
                auto const pair_products = [&](std::int32_t by, std::int32_t offset) __attribute__((always_inline)) {
                  return multiply_pairs(values, repeat_bytes(by)) + repeat_shorts(offset);
                };
                ints &first = dots[n][0][block() % 4], &last = dots[n][chains - 1][block() % 4];
                first = dot(first, pair_products(q.a[two_pairs], q.a_offset[two_pairs]), cos);
                last = dot(last, pair_products(q.b[two_pairs], q.b_offset[two_pairs]), sin);
              }
            });
          });
}

/// The entries that turn the keys of one head: once for a layer, or once for a task.
inline void build_turns(key_head const& keys, rotation_tables const& rotation, key_turns& out) {
  std::size_t const all_pairs = padded(rotation.pairs);
  out.resize(rotation.pairs);
  for (std::size_t place = 0; place < rotation.pairs; ++place) {
    std::size_t const pair = keys.order.at[place];
    float const unit = keys.unit[place], a = keys.scale_a[place] / unit, b = keys.scale_b[place] / unit,
                zero_a = keys.zero_a[place] / unit, zero_b = keys.zero_b[place] / unit;
    for (std::size_t token = 0; token < page_tokens; ++token) {
      float const c = rotation.cos[token * all_pairs + pair], s = rotation.sin[token * all_pairs + pair];
      std::size_t const at = (place / 2 * page_tokens + token) * 2 + place % 2;
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

inline void set_turned_entries(query_pairs const& q, float const* units, key_head const& keys, std::size_t all_pairs,
                               query_entries& out) {
  for (std::size_t pair = 0; pair < all_pairs; pair += lanes) {
    floats const scale = load(&keys.unit[pair]) * all(1 / units[pair / lanes]);
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

/// `block_at(part)`: of sixteen tokens.
template <std::size_t Queries, class BlockAt>
[[gnu::always_inline]] inline void add_turned_blocks(BlockAt&& block_at, std::size_t two_pairs,
                                                     query_entries const* entries, key_sums<Queries, 1>& dots) {
  turned_block keys[4];
  unrolled<4>([&](auto part) __attribute__((always_inline)) { keys[part()] = block_at(part); });
#pragma GCC unroll 4
  for (std::size_t n = 0; n < Queries; ++n) {
    shorts const a = repeat_shorts(entries[n].a[two_pairs]), b = repeat_shorts(entries[n].b[two_pairs]);
#pragma GCC unroll 4
    for (std::size_t part = 0; part < 4; ++part)
      dots[n][0][part] = dot(dot(dots[n][0][part], keys[part].a, a), keys[part].b, b);
  }
}

template <std::size_t Queries, class Codes>
void score_turned_keys(split_task const& task, std::uint8_t const* codes, Codes const& keys, key_turns const& turns,
                       query_chunk const& chunk, kernel_scratch& scratch, std::size_t first_token,
                       read_ahead const& ahead) {
  score_codes<Queries, 1>(
      task, codes, keys, chunk, 1.0f, scratch, first_token, ahead,
      [&](std::size_t at, std::uint8_t const* packed, auto const& table, key_sums<Queries, 1>& dots)
          __attribute__((always_inline)) {
            unrolled<2>([&](auto pairs) __attribute__((always_inline)) {
              constexpr std::size_t first_block = 4 * pairs();
              add_turned_blocks<Queries>(
                  [&](auto part) __attribute__((always_inline)) {
                    constexpr std::size_t block = first_block + part();
                    return turn_block(unpack_block<block>(packed, table), turns, 8 * at + block);
                  },
                  2 * at + pairs(), scratch.entries, dots);
            });
          });
}

/// The same from keys that `turn_page` left in the scratch, for more queries than go through at once.
template <std::size_t Queries>
void score_stored_keys(split_task const& task, query_chunk const& chunk, kernel_scratch& scratch) {
  score_chunks<Queries, 1>(
      0, task.head_dim() / 8, chunk, 1.0f, scratch, 0, [&](std::size_t at, key_sums<Queries, 1>& dots) {
        for (std::size_t pairs = 0; pairs < 2; ++pairs)
          add_turned_blocks<Queries>(
              [&](auto part) {
                std::size_t const first = 32 * (8 * at + 4 * pairs + part());
                return turned_block{load_shorts(scratch.turned_a + first), load_shorts(scratch.turned_b + first)};
              },
              2 * at + pairs, scratch.entries, dots);
      });
}

template <class Codes>
void turn_page(split_task const& task, std::uint8_t const* codes, Codes const& keys, key_turns const& turns,
               kernel_scratch& scratch, read_ahead const& ahead) {
  for (std::size_t at = 0; at < task.head_dim() / 8; ++at) {
    ahead.step(at);
    keys.at(
        codes, at, [&](std::uint8_t const* packed, auto const& table) __attribute__((always_inline)) {
          unrolled<8>([&](auto block) __attribute__((always_inline)) {
            auto const [a, b] = turn_block(unpack_block<block()>(packed, table), turns, 8 * at + block());
            store_shorts(scratch.turned_a + 32 * (8 * at + block()), a);
            store_shorts(scratch.turned_b + 32 * (8 * at + block()), b);
          });
        });
  }
}

/// A head's keys may have an order of their own: the angles from page to page in that order.
inline void order_steps(rotation_tables const& rotation, channel_order const& order, kernel_scratch& scratch) {
  for (std::size_t place = 0; place < rotation.pairs; ++place) {
    scratch.step_cos[place] = rotation.step_cos[order.at[place]];
    scratch.step_sin[place] = rotation.step_sin[order.at[place]];
  }
}
/// Those within a page.
inline void order_angles(rotation_tables const& rotation, channel_order const& order, kernel_scratch& scratch) {
  for (std::size_t place = 0; place < rotation.pairs; place += 2) {
    std::uint32_t const* const first = rotation.by_pair16.data() + order.at[place] * page_tokens;
    std::uint32_t const* const second = rotation.by_pair16.data() + order.at[place + 1] * page_tokens;
    std::uint32_t* const cos = scratch.angles.cos.data() + place / 2 * page_tokens;
    std::uint32_t* const sin = scratch.angles.sin.data() + place / 2 * page_tokens;
    for (std::size_t token = 0; token < page_tokens; ++token) {
      cos[token] = (first[token] & 0xffff) | second[token] << 16;
      sin[token] = first[token] >> 16 | (second[token] & 0xffff0000);
    }
  }
}
