// Sealing: the codes and the slots of one side of a page, and the range of a token's values. Bit for bit what
// `page_sealer` gives.

/// Nearest levels, in registers.
template <int Bits>
class level_search {
 public:
  explicit level_search(page_side const& side) : level_(load(side.tables.levels.level)) {
    for (int step = 0; step < Bits; ++step) boundary_[step] = load(side.tables.levels.boundary[step]);
  }
  ints encode(floats x, std::size_t /*channel*/) const {
    ints code = zero_ints();
    for (floats const boundary : boundary_) code = append_bit(code, x, look_up<8>(boundary, code));
    return code;
  }
  /// What the code of x reads as.
  floats decode(floats /*x*/, ints code, std::size_t /*channel*/) const { return look_up<(1 << Bits)>(level_, code); }

 private:
  floats boundary_[Bits], level_;
};

/// The same where channels have tables of their own: x is compared with every boundary.
template <>
class level_search<bits_by_chunk> {
 public:
  explicit level_search(page_side const& side) : levels_(side.tables.own_levels.data() + side.first_channel / lanes) {}

  ints encode(floats x, std::size_t channel) const {
    ints code = zero_ints();
#pragma GCC unroll 15
    for (auto const& boundary : levels_[channel / lanes].boundary) code = count_above(code, x, load(boundary));
    return code;
  }
  floats decode(floats x, ints /*code*/, std::size_t channel) const {
    own_level_tables const& it = levels_[channel / lanes];
    floats level = load(it.level[0]);
#pragma GCC unroll 15
    for (std::size_t i = 0; i + 1 < std::size(it.level); ++i)
      level = select_above(level, x, load(it.boundary[i]), load(it.level[i + 1]));
    return level;
  }

 private:
  own_level_tables const* levels_;  // [head_dim / lanes]
};

/// Codes of the new tokens; their residuals too if there are slots.
template <int Bits, map_of Map>
void encode_side(page_side const& side, sealing_scratch& scratch) {
  level_search<Bits> const levels(side);
  bool const sparse = !side.slots.empty();
  std::size_t const d = side.head_dim();
  for (std::size_t row = 0; row < side.tokens.rows; ++row) {
    half const* const token = side.tokens.row(row).data();
    std::size_t const at = (side.reused() + row) * d;
    for (std::size_t channel = 0; channel < d; channel += lanes) {
      floats const scale = Map == map_of::token ? all(side.scales[row]) : load(side.scales + channel);
      floats const zero = Map == map_of::token ? all(side.zeros[row]) : load(side.zeros + channel);
      floats const x = load(token + channel);
      floats const normalised = (x - zero) / scale;
      ints const code = levels.encode(normalised, channel);
      store_low(side.codes.data() + at + channel, code);
      if (sparse)
        store(scratch.residuals.data() + at + channel,
              x - multiply_then_add(scale, levels.decode(normalised, code, channel), zero));
    }
  }
}

inline std::uint64_t count_clamped(page_side const& side) {
  std::uint64_t within = 0;
  for (std::size_t channel = 0; channel < side.head_dim(); channel += lanes) {
    floats const least = load(side.tables.seen_least.data() + side.first_channel + channel);
    floats const most = load(side.tables.seen_most.data() + side.first_channel + channel);
    for (std::size_t row = 0; row < side.tokens.rows; ++row) {
      floats const x = load(side.tokens.row(row).data() + channel);
      within +=
          static_cast<std::uint64_t>(std::popcount(static_cast<std::uint16_t>(at_least(x, least) & at_least(most, x))));
    }
  }
  return side.tokens.rows * side.head_dim() - within;
}

/// Residuals of the reused tokens: those that were kept.
inline void restore_residuals(page_side const& side, sealing_scratch& scratch) {
  std::size_t const elements = side.reused() * side.head_dim();
  std::fill_n(scratch.residuals.begin(), elements, half{});
  for (outlier const it : side.slots)
    if (it.index < elements) scratch.residuals[it.index] = it.residual;
}

/// A bound that at least `rank` of `count` numbers reach, and no more unless some are equal or nearly so.
inline float bound_of(float const* x, std::size_t count, std::size_t rank) {
  floats most = load(x), least = zero() - most;
  for (std::size_t i = lanes; i < count; i += lanes) {
    most = max(most, load(x + i));
    least = max(least, zero() - load(x + i));
  }
  float reached = -largest(least), top = largest(most);
  if (rank == 1) return top;
  constexpr int most_steps = 24;
  for (int step = 0; step < most_steps; ++step) {
    float const middle = reached / 2 + top / 2;
    if (!(middle > reached)) break;
    std::size_t reaching = 0;
    for (std::size_t i = 0; i < count; i += lanes)
      reaching += static_cast<std::size_t>(std::popcount(at_least(load(x + i), all(middle))));
    (reaching >= rank ? reached : top) = middle;
    if (reaching == rank) break;
  }
  return reached;
}

/// Weighs every element as the selector of slots does. Returns a bound that all to be chosen reach: that of the largest
/// in blocks of a few tokens.
inline float weigh(page_side const& side, sealing_scratch& scratch) {
  std::size_t const d = side.head_dim(), slots = side.slots.size();
  std::size_t block = 8;  // tokens; there are blocks enough for no bound to let many more than the slots pass
  while (block > 1 && 4 * slots > page_tokens / block * d) block /= 2;
  std::size_t count = 0;
  for (std::size_t first = 0; first < page_tokens * d; first += block * d)
    for (std::size_t channel = 0; channel < d; channel += lanes, count += lanes) {
      floats const sensitivity = load(side.sensitivity.data() + channel);
      floats most = zero();
      for (std::size_t i = first + channel; i < first + block * d; i += d) {
        floats const residual = load(scratch.residuals.data() + i), weight = sensitivity * residual * residual;
        store(scratch.weights.data() + i, weight);
        most = max(most, weight);
      }
      store(scratch.largest.data() + count, most);
    }
  return bound_of(scratch.largest.data(), count, slots);
}

/// Indices of the bits that are set in `count` masks of 16. Four at once, needed or not: how many a word has is no
/// branch to be guessed.
inline std::span<std::uint16_t const> list_found(std::uint16_t* masks, std::size_t count, std::uint16_t* indices) {
  constexpr std::size_t in_word = 4, at_once = 4;
  std::fill_n(masks + count, in_word - 1, std::uint16_t{0});  // there is room for whole words
  std::size_t end = 0;
  for (std::size_t i = 0; i < count; i += in_word) {
    std::uint64_t word;
    std::memcpy(&word, masks + i, sizeof word);
    auto const found = static_cast<std::size_t>(std::popcount(word));
    for (std::size_t first = 0; first == 0 || first < found; first += at_once)
      for (std::size_t j = 0; j < at_once; ++j, word &= word - 1)
        indices[end + first + j] =
            static_cast<std::uint16_t>(i * lanes + static_cast<unsigned>(std::countr_zero(word)));
    end += found;
  }
  return {indices, end};
}

/// Indices of the numbers that reach a bound. `list` holds them.
inline std::span<std::uint16_t const> list_reaching(std::span<float const> x, float bound, sealing_scratch& scratch,
                                                    std::vector<std::uint16_t>& list) {
  for (std::size_t i = 0; i < x.size(); i += lanes) scratch.masks[i / lanes] = at_least(load(x.data() + i), all(bound));
  return list_found(scratch.masks.data(), x.size() / lanes, list.data());
}

/// Few elements reach the first bound, and of these hardly one too many the second.
inline void choose_slots(page_side const& side, sealing_scratch& scratch) {
  std::size_t const d = side.head_dim();
  std::span<float const> const weights = std::span(scratch.weights).first(page_tokens * d);
  auto const found = list_reaching(weights, weigh(side, scratch), scratch, scratch.found);
  std::span<float> const found_weights = std::span(scratch.largest).first(padded(found.size()));
  std::fill(found_weights.end() - lanes, found_weights.end(), 0.0f);
  for (std::size_t i = 0; i < found.size(); ++i) found_weights[i] = weights[found[i]];
  float const bound = bound_of(found_weights.data(), found_weights.size(), side.slots.size());
  scratch.slots.start(page_tokens * d);
  for (std::size_t const i : list_reaching(found_weights, bound, scratch, scratch.chosen)) {
    if (i >= found.size()) break;  // zeros of the padding
    std::uint32_t const index = found[i], channel = index % static_cast<std::uint32_t>(d);
    scratch.slots.offer(index, scratch.residuals[index], side.sensitivity[channel]);
  }
  scratch.slots.finish(side.slots);
}

template <int Bits, map_of Map>
void seal_side(page_side const& side, sealing_scratch& scratch) {
  encode_side<Bits, Map>(side, scratch);
  if (side.slots.empty()) return;
  restore_residuals(side, scratch);
  choose_slots(side, scratch);
}

/// The `rank`-th largest of `sign` · x over those that were found.
inline float rank_of_found(std::span<half const> x, float sign, std::size_t rank, std::span<std::uint16_t const> found,
                           std::span<float> room) {
  auto const end =
      std::transform(found.begin(), found.end(), room.begin(), [&](std::size_t i) { return sign * to_float(x[i]); });
  auto const at = room.begin() + static_cast<std::ptrdiff_t>(rank) - 1;
  std::nth_element(room.begin(), at, end, std::greater<>{});
  return *at;
}

/// Both ends alike: the smallest are the largest of the negatives.
inline value_range range_of(std::span<half const> token, std::size_t rank, sealing_scratch& scratch) {
  std::size_t const vectors = token.size() / lanes, blocks = std::min(vectors, (4 * rank + lanes - 1) / lanes);
  std::size_t const block = (vectors + blocks - 1) / blocks * lanes;
  std::size_t count = 0;
  for (std::size_t first = 0; first < token.size(); first += block, count += lanes) {
    floats most = load(token.data() + first), least = zero() - most;
    for (std::size_t i = first + lanes; i < std::min(first + block, token.size()); i += lanes) {
      floats const x = load(token.data() + i);
      most = max(most, x);
      least = max(least, zero() - x);
    }
    store(scratch.largest.data() + count, most);
    store(scratch.smallest.data() + count, least);
  }
  float const high = bound_of(scratch.largest.data(), count, rank);
  float const low = bound_of(scratch.smallest.data(), count, rank);
  if (rank == 1) return make_range(-low, high);
  for (std::size_t i = 0; i < vectors; ++i) {
    floats const x = load(token.data() + i * lanes);
    scratch.masks[i] = at_least(x, all(high));
    scratch.masks_below[i] = at_least(zero() - x, all(low));
  }
  auto const ranked = [&](float sign, std::span<std::uint16_t> masks) {
    return sign *
           rank_of_found(token, sign, rank, list_found(masks.data(), vectors, scratch.found.data()), scratch.largest);
  };
  return make_range(ranked(-1, scratch.masks_below), ranked(1, scratch.masks));
}
