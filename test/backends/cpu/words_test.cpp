#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>

#include "backends/cpu/eight_blocks.hpp"
#include "backends/cpu/isa.hpp"
#include "backends/cpu/isa/avx2.hpp"
#include "backends/cpu/isa/avx512.hpp"
#include "backends/cpu/isa/portable.hpp"
#include "backends/cpu/isa/target.hpp"
#include "test/backends/cpu/words_on_memory.hpp"

#if defined(__x86_64__)
KVQ_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")
namespace kvquant::cpu::avx512 {
#include "test/backends/cpu/words_on_memory.inl"
}  // namespace kvquant::cpu::avx512
KVQ_TARGET_END
KVQ_TARGET_BEGIN("avx2,fma,f16c")
namespace kvquant::cpu::avx2 {
#include "test/backends/cpu/words_on_memory.inl"  // NOLINT(readability-duplicate-include)
}  // namespace kvquant::cpu::avx2
KVQ_TARGET_END
#endif
HWY_BEFORE_NAMESPACE();
namespace kvquant::cpu::portable {
#include "test/backends/cpu/words_on_memory.inl"  // NOLINT(readability-duplicate-include)
}  // namespace kvquant::cpu::portable
HWY_AFTER_NAMESPACE();

namespace kvquant::cpu {
namespace {

test::words_on_memory const& words_of(isa which) {
  switch (which) {
#if defined(__x86_64__)
    case isa::avx512: return avx512::words_on_memory;
    case isa::avx2: return avx2::words_on_memory;
#endif
    default: return portable::words_on_memory;
  }
}

/// `check(words)` for whatever this machine can run.
template <class F>
void for_each_isa(F&& check) {
  for (isa const which : available_isas()) {
    INFO("instructions " << name_of(which));
    check(words_of(which));
  }
}

class numbers {
 public:
  /// Whole, from `low` to `high`.
  template <class T, std::size_t N>
  void fill(T (&out)[N], int low, int high) {
    std::uniform_int_distribution<int> pick(low, high);
    for (T& it : out) it = static_cast<T>(pick(random_));
  }

 private:
  std::mt19937 random_{7};
};

template <class T, std::size_t N>
void require_same(T const (&found)[N], T const (&expected)[N]) {
  for (std::size_t i = 0; i < N; ++i) {
    INFO("element " << i);
    REQUIRE(+found[i] == +expected[i]);
  }
}

TEST_CASE("words: numbers are loaded from binary16 and from slots") {
  for_each_isa([](test::words_on_memory const& words) {
    half halves[16];
    outlier slots[16];
    float expected[16], found[16];
    for (std::uint16_t i = 0; i < 16; ++i) {
      halves[i] = to_half((i % 2 == 0 ? 1.0f : -1.0f) * std::ldexp(1.25f, 3 * i - 30));
      slots[i] = {static_cast<std::uint16_t>(0xffff - i), halves[i]};
      expected[i] = to_float(halves[i]);
    }
    words.load_halves(halves, found);
    require_same(found, expected);
    words.load_residuals(slots, found);
    require_same(found, expected);
  });
}

TEST_CASE("words: arithmetic of floats") {
  for_each_isa([](test::words_on_memory const& words) {
    float a[16], b[16], c[16], found[6][16];
    numbers random;
    random.fill(a, -1000, 1000);
    random.fill(b, -1000, 1000);
    random.fill(c, -1000, 1000);
    words.calculate(a, b, c, found);
    for (std::size_t i = 0; i < 16; ++i) {
      float const expected[6] = {a[i] + b[i],        a[i] - b[i],        a[i] * b[i],
                                 a[i] * b[i] + c[i], a[i] * b[i] - c[i], std::max(a[i], b[i])};
      float const column[6] = {found[0][i], found[1][i], found[2][i], found[3][i], found[4][i], found[5][i]};
      require_same(column, expected);
    }
  });
}

TEST_CASE("words: ties are rounded to even") {
  for_each_isa([](test::words_on_memory const& words) {
    float x[16], expected[16], whole[16], as_ints[16];
    for (int i = 0; i < 16; ++i) {
      x[i] = i < 8 ? static_cast<float>(i) - 3.5f : 100.3f * static_cast<float>(11 - i);
      expected[i] = std::nearbyint(x[i]);
    }
    words.round(x, whole, as_ints);
    require_same(whole, expected);
    require_same(as_ints, expected);
  });
}

TEST_CASE("words: scaling by powers of two down to the least normal number") {
  for_each_isa([](test::words_on_memory const& words) {
    float x[16], n[16], expected[16], found[16];
    for (int i = 0; i < 16; ++i) {
      x[i] = 1.0f + static_cast<float>(i) / 16;
      n[i] = static_cast<float>(-126 + 9 * i);
      expected[i] = std::ldexp(x[i], -126 + 9 * i);
    }
    words.scale_by_power(x, n, found);
    require_same(found, expected);
  });
}

TEST_CASE("words: sums, largest elements and orders") {
  for_each_isa([](test::words_on_memory const& words) {
    float x[16][16], pairs[32], expected[16] = {}, found[16];
    numbers random;
    for (auto& row : x) random.fill(row, -1000, 1000);
    for (std::size_t n = 0; n < 16; ++n) {
      float most = x[n][0];
      for (float const it : x[n]) {
        expected[n] += it;
        most = std::max(most, it);
      }
      REQUIRE(words.sum(x[n]) == expected[n]);
      REQUIRE(words.largest(x[n]) == most);
    }
    words.sum_each(x, found);
    require_same(found, expected);

    float transposed[64], expected_transposed[64];
    words.store_transposed(x, transposed);
    for (std::size_t i = 0; i < 64; ++i) expected_transposed[i] = x[i % 4][i / 4];
    require_same(transposed, expected_transposed);

    float even[16], odd[16], expected_odd[16];
    random.fill(pairs, -1000, 1000);
    words.separate(pairs, even, odd);
    for (std::size_t i = 0; i < 16; ++i) {
      expected[i] = pairs[2 * i];
      expected_odd[i] = pairs[2 * i + 1];
    }
    require_same(even, expected);
    require_same(odd, expected_odd);
  });
}

TEST_CASE("words: low bits are kept, whatever is above them") {
  for_each_isa([](test::words_on_memory const& words) {
    float a[16], b[16];
    std::int16_t low[16], expected_low[16];
    std::int8_t pairs[32], expected_pairs[32];
    numbers random;
    random.fill(a, -1'000'000, 1'000'000);
    random.fill(b, -1'000'000, 1'000'000);
    words.store_low(a, low);
    words.store_low_pairs(a, b, pairs);
    for (std::size_t i = 0; i < 16; ++i) {
      expected_low[i] = static_cast<std::int16_t>(static_cast<int>(a[i]));
      expected_pairs[2 * i] = static_cast<std::int8_t>(static_cast<int>(a[i]));
      expected_pairs[2 * i + 1] = static_cast<std::int8_t>(static_cast<int>(b[i]));
    }
    require_same(low, expected_low);
    require_same(pairs, expected_pairs);
  });
}

TEST_CASE("words: a probability's parts join to it") {
  for_each_isa([](test::words_on_memory const& words) {
    int const most = (1 << words.probability_bits) - 1;
    float x[16], high_floats[16], low_floats[16], found[16];
    std::uint8_t high[16], low[16];
    numbers random;
    random.fill(x, 0, most);
    x[3] = static_cast<float>(most);
    words.parts(x, high, low);
    for (std::size_t i = 0; i < 16; ++i) {
      REQUIRE(+low[i] == static_cast<int>(x[i]) % 128);
      high_floats[i] = high[i];
      low_floats[i] = low[i];
    }
    words.join_parts(high_floats, low_floats, found);
    require_same(found, x);
  });
}

TEST_CASE("words: low halves side by side") {
  for_each_isa([](test::words_on_memory const& words) {
    float low[16], high[16];
    std::int16_t found[32], expected[32];
    numbers random;
    random.fill(low, -32768, 32767);
    random.fill(high, -32768, 32767);
    words.pair_low(low, high, found);
    for (std::size_t i = 0; i < 16; ++i) {
      expected[2 * i] = static_cast<std::int16_t>(low[i]);
      expected[2 * i + 1] = static_cast<std::int16_t>(high[i]);
    }
    require_same(found, expected);
  });
}

TEST_CASE("words: products of pairs with one pair") {
  for_each_isa([](test::words_on_memory const& words) {
    alignas(16) std::int16_t pairs[8];
    std::int16_t const by[2] = {32767, 32767};
    numbers random;
    random.fill(pairs, -32767, 32767);
    pairs[0] = pairs[1] = 32767;
    float first, each[4];
    words.dot_each(pairs, by, &first, each);
    for (std::size_t i = 0; i < 4; ++i)
      REQUIRE(each[i] == static_cast<float>(pairs[2 * i] * by[0] + pairs[2 * i + 1] * by[1]));
    REQUIRE(first == each[0]);
  });
}

TEST_CASE("words: products of bytes, neighbours added") {
  for_each_isa([](test::words_on_memory const& words) {
    std::uint8_t a[64];
    std::int8_t b[64];
    std::int16_t plus[32], found[32], expected[32];
    numbers random;
    random.fill(a, 0, 128);
    random.fill(b, -127, 127);
    random.fill(plus, -32768, 32767);
    for (std::size_t i = 0; i < 2; ++i) {
      a[i] = a[10 + i] = 128;
      b[i] = -127;
      b[10 + i] = 127;
    }
    words.multiply_pairs(a, b, plus, found);
    for (std::size_t i = 0; i < 32; ++i)
      expected[i] = static_cast<std::int16_t>(a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1] + plus[i]);
    require_same(found, expected);
  });
}

TEST_CASE("words: sums of products of shorts") {
  for_each_isa([](test::words_on_memory const& words) {
    float sum[16], found[16], expected[16];
    std::int16_t a[32], two[2] = {-321, 255};
    numbers random;
    random.fill(sum, -100'000, 100'000);
    random.fill(a, -32'000, 32'000);
    std::int32_t both;
    std::memcpy(&both, two, 4);
    words.dot_shorts(sum, a, both, found);
    for (std::size_t i = 0; i < 16; ++i)
      expected[i] = sum[i] + static_cast<float>(a[2 * i] * two[0] + a[2 * i + 1] * two[1]);
    require_same(found, expected);
  });
}

TEST_CASE("words: sums of products of bytes do not saturate below the largest part") {
  for_each_isa([](test::words_on_memory const& words) {
    float sum[16], found[16], expected[16];
    auto const most = static_cast<std::uint8_t>((1 << (words.probability_bits - 7)) - 1);
    std::uint8_t const a[4] = {most, most, 1, most};
    std::int8_t b[64];
    numbers random;
    random.fill(sum, -100'000, 100'000);
    random.fill(b, -128, 127);
    std::memset(b, 127, 4);
    std::memset(b + 60, -128, 4);
    std::int32_t four;
    std::memcpy(&four, a, 4);
    words.dot_bytes(sum, four, b, found);
    for (std::size_t i = 0; i < 16; ++i) {
      expected[i] = sum[i];
      for (std::size_t j = 0; j < 4; ++j) expected[i] += static_cast<float>(a[j] * b[4 * i + j]);
    }
    require_same(found, expected);
  });
}

TEST_CASE("words: boundaries below are counted, and choose") {
  for_each_isa([](test::words_on_memory const& words) {
    float x[16], boundaries[3][16], others[3][16], above[16], chosen[16];
    numbers random;
    random.fill(x, -3, 3);  // equal ones among them
    for (auto& row : boundaries) random.fill(row, -3, 3);
    for (auto& row : others) random.fill(row, 1, 100);
    words.search(x, boundaries, others, 3, above, chosen);
    for (std::size_t i = 0; i < 16; ++i) {
      float expected_count = 0, expected_choice = 0;
      for (std::size_t row = 0; row < 3; ++row)
        if (x[i] > boundaries[row][i]) {
          ++expected_count;
          expected_choice = others[row][i];
        }
      REQUIRE(above[i] == expected_count);
      REQUIRE(chosen[i] == expected_choice);
    }
  });
}

TEST_CASE("words: eight bytes are repeated") {
  for_each_isa([](test::words_on_memory const& words) {
    std::uint8_t eight[8], found[64], expected[64];
    numbers random;
    random.fill(eight, 0, 255);
    words.repeat_eight(eight, found);
    for (std::size_t i = 0; i < 64; ++i) expected[i] = eight[i % 8];
    require_same(found, expected);
  });
}

template <int Bits>
void check_unpack() {
  std::uint8_t table[16], packed[packed_block_bytes<Bits>];
  numbers random;
  random.fill(table, 0, 255);
  random.fill(packed, 0, 255);
  std::array<std::uint8_t, block_codes> codes;
  unpack_blocks<Bits>(packed, codes);
  for_each_isa([&](test::words_on_memory const& words) {
    std::uint8_t found[8][64];
    words.unpack[Bits - 1](packed, table, found);
    for (std::size_t i = 0; i < block_codes; ++i) {
      INFO(Bits << " bits, code " << i);
      REQUIRE(+found[i / 64][i % 64] == +table[codes[i]]);
    }
  });
}

TEST_CASE("words: eight blocks read as their table says") {
  check_unpack<1>();
  check_unpack<2>();
  check_unpack<3>();
  check_unpack<4>();
}

}  // namespace
}  // namespace kvquant::cpu
