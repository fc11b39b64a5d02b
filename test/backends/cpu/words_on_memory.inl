// The table of the words in whose namespace this is included.

template <int Bits>
void unpack_in_memory(std::uint8_t const* packed, std::uint8_t const* table, std::uint8_t (*out)[64]) {
  code_table<Bits> const entries(table);
  unrolled<8>([&](auto i) { store_bytes(out[i()], unpack_block<i()>(packed, entries)); });
}

inline constexpr test::words_on_memory words_on_memory{
    .probability_bits = probability_bits,
    .load_halves = [](half const* x, float* out) { store(out, load(x)); },
    .load_residuals = [](outlier const* x, float* out) { store(out, load_residuals(x)); },
    .calculate =
        [](float const* a, float const* b, float const* c, float (*out)[16]) {
          floats const x = load(a), y = load(b), z = load(c);
          floats const results[6] = {x + y, x - y, x * y, fma(x, y, z), fms(x, y, z), max(x, y)};
          for (int i = 0; i < 6; ++i) store(out[i], results[i]);
        },
    .round =
        [](float const* x, float* whole, float* as_ints) {
          store(whole, round(load(x)));
          store(as_ints, to_floats(rounded(load(x))));
        },
    .scale_by_power = [](float const* x, float const* n, float* out) { store(out, scale_by_power(load(x), load(n))); },
    .sum = [](float const* x) { return sum(load(x)); },
    .largest = [](float const* x) { return largest(load(x)); },
    .separate =
        [](float const* x, float* even, float* odd) {
          floats evens, odds;
          separate(load(x), load(x + 16), evens, odds);
          store(even, evens);
          store(odd, odds);
        },
    .sum_each = [](float const (*parts)[16], float* out) { store(out, sum_each(parts)); },
    .store_transposed =
        [](float const (*x)[16], float* out) {
          floats const rows[4] = {load(x[0]), load(x[1]), load(x[2]), load(x[3])};
          store_transposed(out, rows);
        },
    .parts = [](float const* x, std::uint8_t* high, std::uint8_t* low) { store_parts(rounded(load(x)), high, low); },
    .join_parts = [](float const* high, float const* low,
                     float* out) { store(out, to_floats(join_parts(rounded(load(high)), rounded(load(low))))); },
    .store_low = [](float const* x, std::int16_t* out) { store_low(out, rounded(load(x))); },
    .pair_low =
        [](float const* low, float const* high, std::int16_t* out) {
          float pairs[16];
          store(pairs, pair_low(rounded(load(low)), rounded(load(high))));
          std::memcpy(out, pairs, sizeof(pairs));
        },
    .store_low_pairs = [](float const* a, float const* b,
                          std::int8_t* out) { store_low_pairs(out, rounded(load(a)), rounded(load(b))); },
    .multiply_pairs =
        [](std::uint8_t const* a, std::int8_t const* b, std::int16_t const* plus, std::int16_t* out) {
          store_shorts(out, multiply_pairs(load_bytes(a), load_bytes(b)) + load_shorts(plus));
        },
    .dot_shorts =
        [](float const* sum, std::int16_t const* a, std::int32_t two, float* out) {
          store(out, to_floats(dot(rounded(load(sum)), load_shorts(a), repeat_shorts(two))));
        },
    .dot_bytes = [](float const* sum, std::int32_t four, std::int8_t const* b,
                    float* out) { store(out, to_floats(dot(rounded(load(sum)), repeat_bytes(four), load_bytes(b)))); },
    .dot_each =
        [](std::int16_t const* pairs, std::int16_t const* by, float* first, float* each) {
          *first = dot_each<1>(pairs, by);
          auto const all_four = dot_each<4>(pairs, by);
          std::memcpy(each, &all_four, sizeof(all_four));
        },
    .search =
        [](float const* x, float const (*boundaries)[16], float const (*others)[16], int count, float* above,
           float* chosen) {
          ints found = zero_ints();
          floats choice = zero();
          for (int i = 0; i < count; ++i) {
            found = count_above(found, load(x), load(boundaries[i]));
            choice = select_above(choice, load(x), load(boundaries[i]), load(others[i]));
          }
          store(above, to_floats(found));
          store(chosen, choice);
        },
    .repeat_eight = [](std::uint8_t const* eight, std::uint8_t* out) { store_bytes(out, repeat_eight(eight)); },
    .unpack = {unpack_in_memory<1>, unpack_in_memory<2>, unpack_in_memory<3>, unpack_in_memory<4>}};
