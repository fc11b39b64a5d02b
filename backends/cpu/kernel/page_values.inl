// Σ p · v over the values of sealed pages, out of their codes, in integers. With a range for each token
// v = s_t · step · n + z_t; with one for each channel v = s_c · step · n + z_c, and s_t and z_t are 1. p · s_t is a
// number of `probability_bits`, in two parts of which each multiplies the 8-bit n; the channel's part is applied to the
// sums.

inline std::uint8_t const* page_bytes_at(std::byte const* page, std::size_t offset) {
  return reinterpret_cast<std::uint8_t const*>(page + offset);
}

/// p · s_t and Σ p · z_t of a group of pages. `weights`: [tokens].
inline float weigh_probabilities(split_task const& task, std::span<std::byte const* const> pages, float const* p,
                                 float* weights) {
  quad_offsets const& at = task.model.offsets;
  std::size_t const tokens = pages.size() * page_tokens;
  bool const by_token = task.model.geometry.range_bytes() > 0;
  floats offset = zero();
  floats const one_half = all(0.5f);
  for (std::size_t t = 0; t < tokens; t += lanes) {
    if (!by_token) {
      floats const weight = load(p + t);
      store(weights + t, weight);
      offset = offset + weight;
      continue;
    }
    std::byte const* const page = pages[t / page_tokens];
    auto const range_end = [&](std::size_t part) {
      return load(reinterpret_cast<half const*>(page + part) + t % page_tokens);
    };
    floats const lower = range_end(at.lowers), upper = range_end(at.uppers), weight = load(p + t) * one_half;
    store(weights + t, max(weight * (upper - lower), all(0.0f)));
    offset = fma(weight, upper + lower, offset);
  }
  return sum(offset);
}

/// Probabilities of a group of pages as integers relative to the largest p · s_t. Returns their unit, and adds Σ p ·
/// z_t to the query's offset.
inline float set_probability_parts(split_task const& task, std::span<std::byte const* const> pages, query_state& q,
                                   std::size_t index, kernel_scratch& scratch) {
  std::size_t const tokens = pages.size() * page_tokens;
  alignas(line_bytes) float weights[group_tokens];
  q.offset += weigh_probabilities(task, pages, scratch.scores[index], weights);
  floats most = zero();
  for (std::size_t t = 0; t < tokens; t += lanes) most = max(most, load(weights + t));
  constexpr float largest_part = (1 << probability_bits) - 1;
  float const unit = std::max(largest(most), 1e-30f) / largest_part;
  floats const per_unit = all(1 / unit);
  for (std::size_t t = 0; t < tokens; t += lanes)
    store_parts(rounded(load(weights + t) * per_unit), scratch.high[index] + t, scratch.low[index] + t);
  return unit;
}

template <std::size_t Tokens>
inline bytes repeat_tokens(std::uint8_t const* p) {
  if constexpr (Tokens == 8) return repeat_eight(p);
  std::int32_t four;
  std::memcpy(&four, p, sizeof(four));
  return repeat_bytes(four);
}

/// `Vectors` of 16 sums, for `Channels` channels each, from the `first` on. `values_at(page, unit, block)` gives the
/// levels of a block. `step(page, unit)` is called once for each.
template <std::size_t Queries, std::size_t Channels, std::size_t Vectors, class ValuesAt, class Step>
inline void add_value_vectors(std::size_t pages, std::size_t first, float const (&units)[Queries], query_chunk& chunk,
                              kernel_scratch const& scratch, ValuesAt&& values_at, Step&& step) {
  constexpr std::size_t tokens = tokens_of_block(Channels), parts = parts_of_page(Channels);
  ints high[Queries][Vectors], low[Queries][Vectors];
#pragma GCC unroll 4
  for (std::size_t n = 0; n < Queries; ++n)
#pragma GCC unroll 4
    for (std::size_t i = 0; i < Vectors; ++i) high[n][i] = low[n][i] = zero_ints();
  for (std::size_t page = 0; page < pages; ++page)
    for (std::size_t part = 0; part < parts; ++part)
      unrolled<8>([&](auto block) __attribute__((always_inline)) {
        std::size_t const token = page * page_tokens + (part * 8 + block()) * tokens;
        if constexpr (block() % (8 / Vectors) == 0) step(page, (first + block() / (8 / Vectors)) * parts + part);
        bytes values[Vectors];
#pragma GCC unroll 4
        for (std::size_t i = 0; i < Vectors; ++i) values[i] = values_at(page, (first + i) * parts + part, block);
#pragma GCC unroll 4
        for (std::size_t n = 0; n < Queries; ++n) {
          bytes const p_high = repeat_tokens<tokens>(scratch.high[n] + token);
          bytes const p_low = repeat_tokens<tokens>(scratch.low[n] + token);
#pragma GCC unroll 4
          for (std::size_t i = 0; i < Vectors; ++i) {
            high[n][i] = dot(high[n][i], p_high, values[i]);
            low[n][i] = dot(low[n][i], p_low, values[i]);
          }
        }
      });
#pragma GCC unroll 4
  for (std::size_t n = 0; n < Queries; ++n)
#pragma GCC unroll 4
    for (std::size_t i = 0; i < Vectors; ++i) {
      float* const sums = chunk.queries[n].dense + (first + i) * lanes;
      store(sums, fma(to_floats(join_parts(high[n][i], low[n][i])), all(units[n]), load(sums)));
    }
}

/// As many vectors of sums at once as stay in registers.
template <std::size_t Queries>
inline constexpr std::size_t vectors_together = std::clamp<std::size_t>(held_sums / (2 * Queries), 1, 4);

/// Vectors from `first` to `last`, `Vectors` at once, then fewer.
template <std::size_t Queries, std::size_t Channels, std::size_t Vectors = vectors_together<Queries>, class ValuesAt,
          class Step>
inline void add_all_vectors(std::size_t pages, std::size_t first, std::size_t last, float const (&units)[Queries],
                            query_chunk& chunk, kernel_scratch const& scratch, ValuesAt&& values_at, Step&& step) {
  for (; first + Vectors <= last; first += Vectors)
    add_value_vectors<Queries, Channels, Vectors>(pages, first, units, chunk, scratch, values_at, step);
  if constexpr (Vectors > 1)
    add_all_vectors<Queries, Channels, Vectors / 2>(pages, first, last, units, chunk, scratch, values_at, step);
}

template <std::size_t Queries>
inline void set_all_parts(split_task const& task, std::span<std::byte const* const> pages, query_chunk& chunk,
                          kernel_scratch& scratch, float (&units)[Queries]) {
  for (std::size_t n = 0; n < Queries; ++n) units[n] = set_probability_parts(task, pages, chunk.queries[n], n, scratch);
}

template <std::size_t Queries, class Codes>
void add_packed_values(split_task const& task, std::span<std::byte const* const> pages, Codes const& values,
                       query_chunk& chunk, kernel_scratch& scratch, std::span<read_ahead const> ahead) {
  float units[Queries];
  set_all_parts(task, pages, chunk, scratch, units);
  values.for_each_run(
      task.head_dim() / 8, [&](auto bits, std::size_t first, std::size_t last, std::size_t start,
                               auto&& table_at) __attribute__((always_inline)) {
        constexpr std::size_t unit_bytes = packed_block_bytes<bits()>;
        std::size_t const before = task.model.offsets.v_codes + start - first * unit_bytes;
        constexpr std::size_t parts = parts_of_page(Codes::block_channels);
        add_all_vectors<Queries, Codes::block_channels>(
            pages.size(), first / parts, last / parts, units, chunk, scratch,
            [&](std::size_t page, std::size_t unit, auto block) __attribute__((always_inline)) {
              return unpack_block<block()>(page_bytes_at(pages[page], before + unit * unit_bytes), table_at(unit));
            },
            [&](std::size_t page, std::size_t unit)
                __attribute__((always_inline)) { ahead[page].step(task.model.steps.values + unit); });
      });
}

/// The same from levels that `unpack_values` left in the scratch.
template <std::size_t Queries, class Codes>
void add_stored_values(split_task const& task, std::span<std::byte const* const> page, query_chunk& chunk,
                       kernel_scratch& scratch) {
  float units[Queries];
  set_all_parts(task, page, chunk, scratch, units);
  add_all_vectors<Queries, Codes::block_channels>(
      page.size(), 0, task.head_dim() / Codes::block_channels, units, chunk, scratch,
      [&](std::size_t, std::size_t unit, auto block) {
        return load_bytes(scratch.values + block_codes * unit + block_bytes * block());
      },
      [](std::size_t, std::size_t) {});
}

template <class Codes>
void unpack_values(split_task const& task, std::byte const* page, Codes const& values, kernel_scratch& scratch,
                   read_ahead const& ahead) {
  auto const* const codes = page_bytes_at(page, task.model.offsets.v_codes);
  for (std::size_t unit = 0; unit < task.head_dim() / 8; ++unit) {
    ahead.step(task.model.steps.values + unit);
    values.at(
        codes, unit, [&](std::uint8_t const* packed, auto const& table) __attribute__((always_inline)) {
          unrolled<8>([&](auto i) __attribute__((always_inline)) {
            store_bytes(scratch.values + block_codes * unit + block_bytes * i(), unpack_block<i()>(packed, table));
          });
        });
  }
}

/// What the codes have summed up to becomes part of the query's result.
template <std::size_t Channels>
void finish_values(value_head const& head, std::size_t d, query_state& q) {
  constexpr std::size_t sums = lanes / Channels;
  for (std::size_t place = 0; place < d; ++place) {
    float sum = 0;
    for (std::size_t i = 0; i < sums; ++i) sum += q.dense[place * sums + i];
    q.out[head.order.at[place]] += head.scale[place] * sum + head.zero[place] * q.offset;
  }
}
