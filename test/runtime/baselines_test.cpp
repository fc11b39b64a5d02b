#include "runtime/simulation/baselines.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "kvquant/core/half.hpp"
#include "runtime/tensor_type.hpp"
#include "test/support/gguf_writer.hpp"
#include "test/support/random_matrix.hpp"
#include "test/support/thrown.hpp"

namespace kvquant::runtime {
namespace {

using test::float_matrix;
using test::random_keys;
using block = std::array<float, 32>;

/// Some values; the rest are 0.
block block_of(std::initializer_list<float> values) {
  block out{};
  std::copy(values.begin(), values.end(), out.begin());
  return out;
}
void check_reads(void (*round)(std::span<float>), std::initializer_list<float> from, std::initializer_list<float> to) {
  block x = block_of(from);
  round(x);
  CHECK(x == block_of(to));
}

TEST_CASE("blocks of q8_0 worked by hand") {
  check_reads(rounding::q8_0, {}, {});
  // The step is 1; halves go away from zero.
  check_reads(rounding::q8_0, {127, -127, 0.4f, 0.5f, 1.5f, 2.5f, -0.5f, -2.5f, -2.4f, 126.5f},
              {127, -127, 0, 1, 2, 3, -1, -3, -2, 127});
  // 1/127 is 1032/1024 · 2^-7 in binary16, which is a little less.
  check_reads(rounding::q8_0, {-1, 0.5f, 1e-4f}, {-127 * 0.00787353515625f, 64 * 0.00787353515625f, 0});
}

TEST_CASE("blocks of q4_0 worked by hand") {
  check_reads(rounding::q4_0, {}, {});
  // The largest magnitude is negative: it takes code 0, so the step is 1.
  check_reads(rounding::q4_0, {-8, 7, 7.4f, 7.9f, 0.49f, 0.5f, -0.5f, -0.51f, -7.6f}, {-8, 7, 7, 7, 0, 1, 0, -1, -8});
  // It is positive: the step is -1, and everything is mirrored.
  check_reads(rounding::q4_0, {8, -7, -7.4f, -7.9f, -0.49f, -0.5f, 0.5f, 0.51f, 7.6f}, {8, -7, -7, -7, 0, -1, 0, 1, 8});
  // Of two of equal magnitude the first decides.
  check_reads(rounding::q4_0, {4, -4}, {4, -3.5f});
  check_reads(rounding::q4_0, {-4, 4}, {-4, 3.5f});
}

TEST_CASE("integers of a range worked by hand") {
  auto const round = [](std::vector<float> x, int bits) {
    rounding::asymmetric_int(x.data(), x.size(), 1, bits);
    return x;
  };
  CHECK(round({0, 1, 2, 3}, 2) == std::vector<float>{0, 1, 2, 3});
  CHECK(round({0, 0.5f, 1.5f, 2.5f, 2.6f, 3}, 2) == std::vector<float>{0, 0, 2, 2, 3, 3});  // halves go to even
  CHECK(round({-4, -4.25f, 3.25f, 0.1f}, 4) == std::vector<float>{-4.25f, -4.25f, 3.25f, 0.25f});
  CHECK(round({7}, 3) == std::vector<float>{7});
  // 10.001 is 10 in binary16, and a third of 1.003 is 1369/4096.
  CHECK(round({10.001f, 11, 11.003f}, 2) == std::vector<float>{10, 10 + 3 * 1369 / 4096.0f, 10 + 3 * 1369 / 4096.0f});
  for (float const value : round({0.1f, 0.1f, 0.1f}, 4)) CHECK(std::abs(value - 0.1f) < 3e-5f);
}

TEST_CASE("integers of a range leave what lies between their elements alone") {
  std::vector<float> x = {0, 99, 98, 1.2f, 97, 96, 3, 95, 94};
  rounding::asymmetric_int(x.data(), 3, 3, 2);
  CHECK(x == std::vector<float>{0, 99, 98, 1, 97, 96, 3, 95, 94});
}

TEST_CASE("binary16") {
  std::vector<float> x = {0.1f, -1e-9f, 2049, 65504};
  rounding::f16(x);
  CHECK(x == std::vector<float>{0.0999755859375f, 0, 2048, 65504});
}

/// `quantize_row_q8_0_ref` of ggml.
void store_q8_0(test::byte_sink& out, float const* x) {
  float most = 0;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::fabs(x[i]));
  float const d = most / 127, id = d != 0 ? 1 / d : 0;
  out.put(to_half(d));
  for (int i = 0; i < 32; ++i) out.put(static_cast<std::int8_t>(std::lround(x[i] * id)));
}

/// `quantize_row_q4_0_ref` of ggml.
void store_q4_0(test::byte_sink& out, float const* x) {
  float most = 0, extreme = 0;
  for (int i = 0; i < 32; ++i)
    if (most < std::fabs(x[i])) {
      most = std::fabs(x[i]);
      extreme = x[i];
    }
  float const d = extreme / -8, id = d != 0 ? 1 / d : 0;
  out.put(to_half(d));
  auto const code = [&](int i) { return std::min(15, static_cast<int>(x[i] * id + 8.5f)); };
  for (int i = 0; i < 16; ++i) out.put(static_cast<std::uint8_t>(code(i) | code(i + 16) << 4));
}

TEST_CASE("blocks read as those that ggml's quantizers store") {
  bool const is_q8 = GENERATE(true, false);
  auto const x = random_keys(50, 64, 5);
  test::byte_sink blocks;
  for (std::size_t i = 0; i < x.values.size(); i += 32) (is_q8 ? store_q8_0 : store_q4_0)(blocks, x.values.data() + i);
  std::vector<float> expected(x.values.size()), found = x.values;
  dequantize(is_q8 ? tensor_type::q8_0 : tensor_type::q4_0, blocks.bytes(), expected);
  for (std::size_t i = 0; i < found.size(); i += 32)
    (is_q8 ? rounding::q8_0 : rounding::q4_0)(std::span(found).subspan(i, 32));
  CHECK(found == expected);
}

/// KIVI's formula for one group: minimum and scale in binary16, x ≈ round((x − minimum) / scale) · scale + minimum.
void round_group(std::vector<float*> const& group, int bits) {
  auto const [low, high] = std::minmax_element(group.begin(), group.end(), [](float* a, float* b) { return *a < *b; });
  float const most = static_cast<float>((1 << bits) - 1), minimum = to_float(to_half(**low));
  float const scale = to_float(to_half((**high - minimum) / most));
  for (float* const x : group) *x = std::nearbyint(std::clamp((*x - minimum) / scale, 0.0f, most)) * scale + minimum;
}

void check_equal(float_matrix const& found, float_matrix const& expected) {
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < found.values.size(); ++i)
    wrong += std::abs(found.values[i] - expected.values[i]) <= 1e-6f * std::abs(expected.values[i]) ? 0 : 1;
  CHECK(wrong == 0);
}

model_config config_of(int kv_heads, int head_dim) {
  model_config config;
  config.q_heads = config.kv_heads = kv_heads;
  config.head_dim = head_dim;
  return config;
}

TEST_CASE("KIVI rounds whole groups of 32 tokens of each key channel, and 32 channels of each value") {
  int const bits = GENERATE(2, 4);
  std::size_t const tokens = GENERATE(as<std::size_t>(), 1, 31, 32, 33, 64, 200);
  cpu::thread_pool pool(2);
  auto const cache = simulate_baseline(bits == 2 ? "kivi2" : "kivi4", config_of(2, 32), pool);
  auto const k = random_keys(tokens, 64, 6), v = random_keys(tokens, 64, 7);
  auto k_found = k, v_found = v, k_expected = k, v_expected = v;
  for (std::size_t t = 0; t + 32 <= tokens; t += 32)
    for (std::size_t c = 0; c < 64; ++c) {
      std::vector<float*> group;
      for (std::size_t i = 0; i < 32; ++i) group.push_back(&k_expected(t + i, c));
      round_group(group, bits);
    }
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t c = 0; c < 64; c += 32) {
      std::vector<float*> group;
      for (std::size_t i = 0; i < 32; ++i) group.push_back(&v_expected(t, c + i));
      round_group(group, bits);
    }
  cache->keys_pre_rope(0, k_found.view());
  CHECK(k_found.values == k.values);
  cache->keys_post_rope(0, k_found.view());
  cache->values(0, v_found.view());
  check_equal(k_found, k_expected);
  check_equal(v_found, v_expected);
  // A group of 32 takes its codes, a minimum and a scale: 1 bit more for each of its elements.
  CHECK(cache->bits_per_element() == bits + 1);
}

TEST_CASE("KIVI's window: keys leave it 128 at a time, values one by one") {
  inline_executor executor;
  auto const window = simulate_baseline("kivi2", config_of(1, 32), executor)->window();
  REQUIRE(window);
  for (auto const& [t, key, value] : std::vector<std::array<int, 3>>{
           {0, 0, 0}, {126, 0, 0}, {127, 128, 0}, {128, 128, 1}, {254, 128, 127}, {255, 256, 128}, {1000, 896, 873}}) {
    CHECK(window->first_key(t) == key);
    CHECK(window->first_value(t) == value);
  }
  for (char const* const other : {"f16", "q8_0", "q4_0", "int4", "int3"})
    CHECK_FALSE(simulate_baseline(other, config_of(1, 32), executor)->window());
}

TEST_CASE("ggml's blocks and binary16 round keys after RoPE, integers before it") {
  std::string const name = GENERATE("f16", "q8_0", "q4_0", "int4", "int3");
  bool const is_int = name.starts_with("int");
  std::size_t const tokens = GENERATE(as<std::size_t>(), 1, 64, 131);
  cpu::thread_pool pool(3);
  auto const cache = simulate_baseline(name, config_of(3, 64), pool);
  CHECK(cache->name() == name);
  CHECK(cache->bits_per_element() == 0);

  auto const x = random_keys(tokens, 192, 8);
  auto expected = x;
  for (std::size_t t = 0; t < tokens; ++t) {
    auto const row = expected.view().row(t);
    if (name == "f16") rounding::f16(row);
    if (is_int) rounding::asymmetric_int(row.data(), row.size(), 1, name == "int4" ? 4 : 3);
    for (std::size_t c = 0; c < 192; c += 32) {
      if (name == "q8_0") rounding::q8_0(row.subspan(c, 32));
      if (name == "q4_0") rounding::q4_0(row.subspan(c, 32));
    }
  }
  auto before = x, after = x, values = x;
  cache->keys_pre_rope(1, before.view());
  cache->keys_post_rope(1, after.view());
  cache->values(1, values.view());
  CHECK((is_int ? before : after).values == expected.values);
  CHECK((is_int ? after : before).values == x.values);
  CHECK(values.values == expected.values);
  CHECK(expected.values != x.values);

  // A block of 32 has one binary16 scale; a token of 192 channels has two binary16 numbers.
  double const bits = name == "f16"    ? 16
                      : name == "q8_0" ? (32 * 8 + 16) / 32.0
                      : name == "q4_0" ? (32 * 4 + 16) / 32.0
                      : name == "int4" ? (192 * 4 + 32) / 192.0
                                       : (192 * 3 + 32) / 192.0;
  CHECK(cache->bits_per_element() == Approx(bits));
}

TEST_CASE("every baseline that is named can be made") {
  inline_executor executor;
  CHECK(baseline_names().size() == 7);
  for (std::string_view const name : baseline_names())
    CHECK(simulate_baseline(name, config_of(2, 64), executor)->name() == name);
}

TEST_CASE("an unknown baseline is refused with the names that there are") {
  inline_executor executor;
  for (char const* const name : {"", "q5_0", "Q8_0", "kivi", "f16 "}) {
    auto const t = test::error_of([&] { simulate_baseline(name, config_of(2, 64), executor); });
    CHECK(t.code == errc::unsupported);
    CHECK_THAT(t.text, test::says("baseline \"" + std::string(name) + "\"") &&
                           test::says("f16, q8_0, q4_0, kivi2, kivi4, int4, int3"));
  }
}

TEST_CASE("heads that groups of 32 do not divide are refused where groups lie along them") {
  int const head_dim = GENERATE(16, 48, 80);
  inline_executor executor;
  for (std::string const name : {"q8_0", "q4_0", "kivi2", "kivi4"}) {
    auto const t = test::error_of([&] { simulate_baseline(name, config_of(2, head_dim), executor); });
    CHECK(t.code == errc::unsupported);
    CHECK_THAT(t.text, test::says(name + " with head_dim " + std::to_string(head_dim)) && test::says("multiple of 32"));
  }
  for (char const* const name : {"f16", "int4", "int3"})
    CHECK_NOTHROW(simulate_baseline(name, config_of(2, head_dim), executor));
}

}  // namespace
}  // namespace kvquant::runtime
