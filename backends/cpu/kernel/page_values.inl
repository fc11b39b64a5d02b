// Σ p · v over the values of sealed pages, out of their codes, in integers: v = s_t · step · n + z_t, and p · s_t is a
// number of `probability_bits`, in two parts of which each multiplies the 8-bit n.

inline std::uint8_t const* page_bytes_at(std::byte const* page, std::size_t offset) {
  return reinterpret_cast<std::uint8_t const*>(page + offset);
}

/// Probabilities of a group of pages as integers relative to the largest p · s_t. Returns their unit, and adds p · z_t
/// to the query's offset.
inline float set_probability_parts(split_task const& task, std::span<std::byte const* const> pages, query_state& q,
                                   std::size_t index, kernel_scratch& scratch) {
  quad_offsets const& at = task.model.offsets;
  std::size_t const tokens = pages.size() * page_tokens;
  float const* const p = scratch.scores[index];
  alignas(line_bytes) float weights[group_tokens];
  floats most = zero(), offset = zero();
  floats const one_half = all(0.5f);
  for (std::size_t t = 0; t < tokens; t += lanes) {
    std::byte const* const page = pages[t / page_tokens];
    auto const range_end = [&](std::size_t part) {
      return load(reinterpret_cast<half const*>(page + part) + t % page_tokens);
    };
    floats const lower = range_end(at.lowers), upper = range_end(at.uppers), weight = load(p + t) * one_half;
    floats const scaled = max(weight * (upper - lower), all(0.0f));
    offset = fma(weight, upper + lower, offset);
    store(weights + t, scaled);
    most = max(most, scaled);
  }
  q.offset += sum(offset);
  constexpr float largest_part = (1 << probability_bits) - 1;
  float const unit = std::max(largest(most), 1e-30f) / largest_part;
  floats const per_unit = all(1 / unit);
  for (std::size_t t = 0; t < tokens; t += lanes)
    store_parts(rounded(load(weights + t) * per_unit), scratch.high[index] + t, scratch.low[index] + t);
  return unit * task.layer.value_step;
}

inline bytes repeat_four(std::uint8_t const* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof(four));
  return repeat_bytes(four);
}

/// `Blocks` of sixteen channels, from `first_block` on. `values_at(page, block, half of the page, which of its eight)`
/// gives the levels of four tokens. `step(page, block, half of the page)` is called once for each.
template <std::size_t Queries, std::size_t Blocks, class ValuesAt, class Step>
inline void add_value_blocks(std::size_t pages, std::size_t first_block, float const (&units)[Queries],
                             query_chunk& chunk, kernel_scratch const& scratch, ValuesAt&& values_at, Step&& step) {
  ints high[Queries][Blocks], low[Queries][Blocks];
#pragma GCC unroll 4
  for (std::size_t n = 0; n < Queries; ++n)
#pragma GCC unroll 4
    for (std::size_t i = 0; i < Blocks; ++i) high[n][i] = low[n][i] = zero_ints();
  for (std::size_t page = 0; page < pages; ++page)
    for (std::size_t half_page = 0; half_page < 2; ++half_page)
      unrolled<8>([&](auto four) __attribute__((always_inline)) {
        std::size_t const token = page * page_tokens + half_page * 32 + four() * 4;
        if constexpr (four() % (8 / Blocks) == 0) step(page, first_block + four() / (8 / Blocks), half_page);
        bytes values[Blocks];
#pragma GCC unroll 4
        for (std::size_t i = 0; i < Blocks; ++i) values[i] = values_at(page, first_block + i, half_page, four);
#pragma GCC unroll 4
        for (std::size_t n = 0; n < Queries; ++n) {
          bytes const p_high = repeat_four(scratch.high[n] + token), p_low = repeat_four(scratch.low[n] + token);
#pragma GCC unroll 4
          for (std::size_t i = 0; i < Blocks; ++i) {
            high[n][i] = dot(high[n][i], p_high, values[i]);
            low[n][i] = dot(low[n][i], p_low, values[i]);
          }
        }
      });
#pragma GCC unroll 4
  for (std::size_t n = 0; n < Queries; ++n)
#pragma GCC unroll 4
    for (std::size_t i = 0; i < Blocks; ++i) {
      float* const out = chunk.queries[n].out + (first_block + i) * lanes;
      store(out, fma(to_floats(join_parts(high[n][i], low[n][i])), all(units[n]), load(out)));
    }
}

template <std::size_t Queries, class ValuesAt, class Step>
inline void add_values(split_task const& task, std::span<std::byte const* const> pages, query_chunk& chunk,
                       kernel_scratch& scratch, ValuesAt&& values_at, Step&& step) {
  float units[Queries];
  for (std::size_t n = 0; n < Queries; ++n) units[n] = set_probability_parts(task, pages, chunk.queries[n], n, scratch);
  constexpr std::size_t together = std::clamp<std::size_t>(held_sums / (2 * Queries), 1, 4);
  std::size_t const blocks = task.head_dim() / lanes;
  std::size_t block = 0;
  for (; block + together <= blocks; block += together)
    add_value_blocks<Queries, together>(pages.size(), block, units, chunk, scratch, values_at, step);
  for (; block < blocks; ++block)
    add_value_blocks<Queries, 1>(pages.size(), block, units, chunk, scratch, values_at, step);
}

template <int Bits, std::size_t Queries>
void add_packed_values(split_task const& task, std::span<std::byte const* const> pages, code_table<Bits> const& table,
                       query_chunk& chunk, kernel_scratch& scratch, std::span<read_ahead const> ahead) {
  add_values<Queries>(
      task, pages, chunk, scratch,
      [&](std::size_t page, std::size_t block, std::size_t half_page, auto four) __attribute__((always_inline)) {
        std::size_t const at = task.model.offsets.v_codes + (2 * block + half_page) * packed_block_bytes<Bits>;
        return unpack_block<Bits, four()>(page_bytes_at(pages[page], at), table);
      },
      [&](std::size_t page, std::size_t block, std::size_t half_page)
          __attribute__((always_inline)) { ahead[page].step(task.model.steps.values + 2 * block + half_page); });
}

/// The same from levels that `unpack_values` left in the scratch.
template <std::size_t Queries>
void add_stored_values(split_task const& task, std::span<std::byte const* const> page, query_chunk& chunk,
                       kernel_scratch& scratch) {
  add_values<Queries>(
      task, page, chunk, scratch,
      [&](std::size_t, std::size_t block, std::size_t half_page, auto four) {
        return load_bytes(scratch.values + block_codes * (2 * block + half_page) + block_bytes * four());
      },
      [](std::size_t, std::size_t, std::size_t) {});
}

template <int Bits>
void unpack_values(split_task const& task, std::byte const* page, code_table<Bits> const& table,
                   kernel_scratch& scratch, read_ahead const& ahead) {
  for (std::size_t unit = 0; unit < task.head_dim() / 8; ++unit) {
    std::size_t const at = task.model.offsets.v_codes + unit * packed_block_bytes<Bits>;
    ahead.step(task.model.steps.values + unit);
    unrolled<8>([&](auto i) __attribute__((always_inline)) {
      store_bytes(scratch.values + block_codes * unit + block_bytes * i(),
                  unpack_block<Bits, i()>(page_bytes_at(page, at), table));
    });
  }
}
