#include "backends/cpu/sealer.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "kvquant/cache/layout_sealer.hpp"
#include "test/support/counting_new.hpp"
#include "test/support/small_cache.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;

using sealed_specs = type_list<spec<nuq<2>, nuq<2>>, spec<nuq<3>, nuq<3>>, spec<nuq<4>, nuq<4>>,
                               spec<uniform<4>, uniform<2>>, spec<normal_float<3>, normal_float<4>>,
                               spec<nuq<2>, uniform<3>>, spec<adaptive, adaptive>, spec<adaptive, nuq<3>>>;

/// Tokens as binary16 keeps them, [page_tokens, channels].
struct exact_tokens {
  std::vector<half> k, v;
  std::size_t channels;

  view2d<half const> keys(std::size_t first) const { return rows(k, first); }
  view2d<half const> values(std::size_t first) const { return rows(v, first); }

 private:
  view2d<half const> rows(std::vector<half> const& x, std::size_t first) const {
    return {x.data() + first * channels, page_tokens - first, channels};
  }
};

exact_tokens tokens_of(token_stream const& stream, std::size_t first) {
  return {to_halves(stream.keys(0, first, page_tokens)), to_halves(stream.values(0, first, page_tokens)),
          stream.k[0].cols};
}

/// Of few different numbers: zeros of both signs, the least subnormals, the largest, and some between.
exact_tokens tokens_of_few(std::size_t channels, std::vector<std::uint16_t> const& numbers) {
  std::mt19937_64 random(channels);
  exact_tokens it{std::vector<half>(page_tokens * channels), {}, channels};
  for (half& x : it.k) x.bits = numbers[random() % numbers.size()];
  it.v = it.k;
  std::fill_n(it.v.begin() + static_cast<std::ptrdiff_t>(channels), channels, half{0x8000});  // one token of -0 alone
  return it;
}

std::vector<exact_tokens> awkward_tokens(token_stream const& stream) {
  std::size_t const channels = stream.k[0].cols;
  return {tokens_of(stream, 0), tokens_of_few(channels, {0x3c00, 0xbc00, 0}), tokens_of_few(channels, {0, 0x8000}),
          tokens_of_few(channels, {0, 0x8000, 1, 0x8001, 0x03ff, 0x7bff, 0xfbff, 0x3555}),
          tokens_of_few(channels, {0x4200})};
}

/// The page of one head, and what is on the way to it. `clamps`: what was counted.
template <class Sealer>
std::vector<std::byte> sealed(Sealer const& sealer, page_geometry const& geometry, std::size_t head,
                              exact_tokens const& tokens, std::size_t reused, std::vector<std::byte> page,
                              clamp_counts& clamps) {
  auto mine = sealer.make_worker();
  std::vector<value_range> ranges;
  for (std::size_t token = reused; token < page_tokens; ++token)
    ranges.push_back(sealer.range_of(tokens.values(token).row(0), mine));
  page.resize(geometry.page_bytes());
  sealer.seal({head, tokens.keys(reused), tokens.values(reused), ranges, reused, page}, page, mine);
  clamps = Sealer::clamps(mine);
  return page;
}

/// Every page of the kernels against the definition's, re-opened ones too.
template <class S>
void check(artifact<S> const& it, std::vector<exact_tokens> const& all) {
  auto const geometry = geometry_for<S>(it.info);
  layout_sealer<cpu::quad_layout<S>> const definition(it, 0, geometry);
  for (cpu::isa const which : cpu::available_isas()) {
    CAPTURE(cpu::name_of(which), S::name(), geometry.head_dim, geometry.k_slots, geometry.v_slots);
    cpu::sealer<S> const sealer(it, 0, geometry, which);
    std::vector<std::byte> before;
    for (std::size_t i = 0; i < all.size(); ++i)
      for (std::size_t const reused : {0u, 1u, 17u, 63u, 64u}) {
        if (before.empty() && reused > 0) continue;
        std::size_t const head = (i + reused) % static_cast<std::size_t>(it.info.shape.kv_heads);
        clamp_counts expected_clamps, clamps;
        auto const expected = sealed(definition, geometry, head, all[i], reused, before, expected_clamps);
        CAPTURE(i, reused, head);
        CHECK(sealed(sealer, geometry, head, all[i], reused, before, clamps) == expected);
        CHECK(clamps.keys == expected_clamps.keys);
        CHECK(clamps.clamped_keys == expected_clamps.clamped_keys);
        CHECK(clamps.clamped_values == expected_clamps.clamped_values);
        before = expected;
      }
  }
}

model_shape shape_of(int kv_heads, int head_dim, rope_config const& rope = {}) {
  return {.layers = 1, .q_heads = kv_heads, .kv_heads = kv_heads, .head_dim = head_dim, .rope = rope};
}

/// With ranges for the stream's tokens, and widths for its channels where the format has them.
template <class S>
artifact<S> artifact_of(token_stream const& stream, artifact_choice const& choice) {
  if constexpr (is_by_channel<typename S::key_format>)
    return hand_made_artifact<S>(
        {.shape = choice.shape, .outliers_k = choice.fraction_k, .outliers_v = choice.fraction_v}, stream.k, stream.v);
  else
    return artifact_for<S>(stream, choice);
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("kernels seal pages bit for bit as the definition does", "[sealer]", sealed_specs) {
  auto const [kv_heads, head_dim] = GENERATE(table<int, int>({{1, 16}, {3, 48}, {2, 80}, {5, 64}}));
  auto const [fraction_k, fraction_v] = GENERATE(table<double, double>({{0, 0}, {0.01, 0.02}, {0.05, 0}, {0.3, 0.6}}));
  artifact_choice const choice{
      .shape = shape_of(kv_heads, head_dim), .fraction_k = fraction_k, .fraction_v = fraction_v};
  token_stream const stream(choice.shape, 64);
  check(artifact_of<TestType>(stream, choice), awkward_tokens(stream));
}

TEST_CASE("kernels seal the widest heads, and many of them, as the definition does", "[sealer]") {
  using S = spec<nuq<4>, nuq<3>>;
  auto const [kv_heads, head_dim] = GENERATE(table<int, int>({{2, 256}, {32, 128}}));
  artifact_choice const choice{.shape = shape_of(kv_heads, head_dim), .fraction_k = 0.01, .fraction_v = 0.01};
  token_stream const stream(choice.shape, 64);
  check(artifact_for<S>(stream, choice), {tokens_of(stream, 0)});
}

TEST_CASE("kernels seal for every rotary pairing as the definition does", "[sealer]") {
  using S = spec<nuq<3>, nuq<2>>;
  rope_config const rope = GENERATE(values<rope_config>({{.enabled = false},
                                                         {.pairing = rope_pairing::interleaved},
                                                         {.rotary_dim = 10},
                                                         {.pairing = rope_pairing::interleaved, .rotary_dim = 20}}));
  artifact_choice const choice{.shape = shape_of(2, 48, rope)};
  token_stream const stream(choice.shape, 64);
  check(artifact_for<S>(stream, choice), {tokens_of(stream, 0)});
}

TEST_CASE("where weights are zero or overflow, magnitudes and indices decide in the kernels too", "[sealer]") {
  using S = spec<nuq<3>, nuq<4>>;
  float const sensitivity = GENERATE(0.0f, 1e-44f, 1e38f, std::numeric_limits<float>::max());
  artifact_choice const choice{.shape = shape_of(2, 64), .fraction_k = 0.02, .fraction_v = 0.2};
  token_stream const stream(choice.shape, 64);
  auto it = artifact_for<S>(stream, choice);
  for (auto* const side : {&it.layers[0].key_sensitivity, &it.layers[0].value_sensitivity})
    std::fill(side->begin(), side->end(), sensitivity);
  check(it, awkward_tokens(stream));
  it.layers[0].key_sensitivity[7] = it.layers[0].value_sensitivity[90] = 1;
  check(it, awkward_tokens(stream));
}

TEST_CASE("levels that coincide or lie far out are found as the definition finds them", "[sealer]") {
  using S = spec<nuq<3>, nuq<3>>;
  constexpr float far = 1e30f;
  artifact_choice const choice{.shape = shape_of(2, 32)};
  token_stream const stream(choice.shape, 64);
  auto it = artifact_for<S>(stream, choice);
  for (auto* const book : {&it.layers[0].key, &it.layers[0].value}) {
    book->levels = {-far, -1, -1, 0, 0, 0.5f, 1, 1};
    book->decode_levels = {-far, -1, -1, -0.0f, 0, 0.5f, far, far};
  }
  check(it, awkward_tokens(stream));
  for (auto* const book : {&it.layers[0].key, &it.layers[0].value}) book->levels.assign(8, 0.25f);
  check(it, awkward_tokens(stream));
}

TEST_CASE("tables of several widths are searched as the definition searches them", "[sealer]") {
  using S = spec<adaptive, adaptive>;
  constexpr float far = 1e30f;
  artifact_choice const choice{.shape = shape_of(2, 64), .fraction_k = 0.01, .fraction_v = 0.02};
  token_stream const stream(choice.shape, 64);
  auto it = artifact_of<S>(stream, choice);
  for (auto* const codes : {&it.layers[0].key_channels, &it.layers[0].value_channels})
    for (auto& levels : codes->levels)
      levels = levels.size() == 2   ? std::vector<float>{-1, 1}
               : levels.size() == 4 ? std::vector<float>{-far, -0.5f, -0.5f, far}
               : levels.size() == 8 ? std::vector<float>{-1, -1, 0, 0, 0, 0.5f, 1, 1}
                                    : std::vector<float>(16, 0.25f);
  check(it, awkward_tokens(stream));
}

TEST_CASE("kernels seal levels of a channel's own as the definition does", "[sealer]") {
  using S = spec<adaptive, adaptive>;
  artifact_choice const choice{.shape = shape_of(1, 32)};
  token_stream const stream(choice.shape, 64);
  auto it = artifact_of<S>(stream, choice);
  channel_codes& codes = it.layers[0].value_channels;
  codes.levels.push_back(codes.levels[codes.table_of[3]]);
  codes.levels.back().front() = -1.5f;
  codes.table_of[3] = static_cast<std::uint16_t>(codes.levels.size() - 1);
  it.info.own_levels = true;
  check(it, awkward_tokens(stream));
}

TEST_CASE("a cache of the CPU's layout seals with the CPU's sealer", "[sealer]") {
  using S = spec<nuq<3>, nuq<3>>;
  STATIC_REQUIRE(std::is_same_v<sealer_for<cpu::page_layout<S>>, cpu::sealer<S>>);
  using exact = spec<passthrough, passthrough>;
  STATIC_REQUIRE(std::is_same_v<sealer_for<cpu::page_layout<exact>>, layout_sealer<cpu::page_layout<exact>>>);
  kv_cache<S, cpu::page_layout<S>> fast(small_artifact<S>(), {.max_tokens = 512});
  kv_cache<S, cpu::quad_layout<S>> plain(small_artifact<S>(), {.max_tokens = 512});
  auto const contents = [](auto& cache) {
    sequence it = sequence_of(cache, small_stream(), 300);
    cache.truncate(it, 150);
    append_tokens(cache, it, other_stream(), 0, 200);
    return contents_of(cache, it);
  };
  CHECK((contents(fast) == contents(plain)));
}

TEST_CASE("sealing allocates nothing once a page has been sealed", "[sealer]") {
  using S = spec<nuq<3>, nuq<3>>;
  kv_cache<S, cpu::page_layout<S>> cache(small_artifact<S>(), {.max_tokens = 1024});
  { sequence const warm_up = sequence_of(cache, small_stream(), 100); }
  sequence it = cache.open(512);
  std::size_t const before = allocations();
  append_tokens(cache, it, small_stream(), 0, 300);
  cache.truncate(it, 150);
  append_tokens(cache, it, other_stream(), 0, 200);
  CHECK(allocations() == before);
}
