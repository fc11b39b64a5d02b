#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "kvquant/cache/cache_io.hpp"
#include "kvquant/reference/pages.hpp"
#include "test/support/sequence_files.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

// A cache of channels with widths of their own does all that others do.

using namespace kvquant;
using namespace kvquant::test;

namespace {

using adaptive_spec = spec<adaptive, adaptive>;
using adaptive_cache = row_major_cache<adaptive_spec>;

model_shape adaptive_shape() { return {.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .rope = {}}; }

token_stream const& adaptive_stream() {
  static token_stream const it(adaptive_shape());
  return it;
}

artifact<adaptive_spec> const& adaptive_artifact(double outliers = 0.01) {
  static artifact<adaptive_spec> const sparse =
      hand_made_artifact<adaptive_spec>({.shape = adaptive_shape()}, adaptive_stream().k, adaptive_stream().v);
  static artifact<adaptive_spec> const dense =
      hand_made_artifact<adaptive_spec>({adaptive_shape(), 0, 0}, adaptive_stream().k, adaptive_stream().v);
  return outliers > 0 ? sparse : dense;
}

adaptive_cache small(double outliers = 0.01) {
  return {adaptive_artifact(outliers), {.max_tokens = 64 * 16, .sinks = 2}};
}

double squared(double x) { return x * x; }

}  // namespace

TEST_CASE("pages of channels with their own widths have exactly the bits of the widths", "[cache]") {
  auto const cache = small(0);
  page_geometry const& it = cache.geometry();
  CHECK(adaptive_artifact(0).info.key_token_bits == 80);  // 32 channels, eight each of 1 to 4 bits
  CHECK(it.k_code_bytes() == 64 * 80 / 8);
  CHECK(it.v_code_bytes() == 64 * 80 / 8);
  CHECK(it.range_bytes() == 0);
  CHECK(it.page_bytes() == 2 * 64 * 80 / 8);
}

TEST_CASE("a code of such a page is the nearest of its channel's levels, and reads as it", "[cache]") {
  auto cache = small();
  auto const tokens = sequence_of(cache, adaptive_stream(), 2 + 64 + 5);
  for (int layer = 0; layer < 2; ++layer)
    for (std::size_t head = 0; head < 2; ++head) {
      canonical_page<adaptive_spec> page;
      cache.read_page(tokens, layer, 0, head, page);
      auto const decoded = reference::decode_page(page, adaptive_artifact(), layer, static_cast<int>(head));
      auto const& codes = adaptive_artifact().layers[static_cast<std::size_t>(layer)].value_channels;
      for (std::size_t t = 0; t < page_tokens; ++t)
        for (std::size_t c = 0; c < 32; ++c) {
          std::size_t const channel = head * 32 + c;
          CHECK(page.v_codes[t * 32 + c] < 1 << codes.widths[channel]);
          double const x = to_float(to_half(adaptive_stream().values(layer, 2, 64)(t, channel)));
          affine const map = affine_of(codes.maps[channel]);
          double nearest = std::numeric_limits<double>::infinity();
          for (float const level : codes.levels[codes.table_of[channel]])
            nearest = std::min(nearest, std::abs(x - (double{map.scale} * level + map.zero)));
          double const missed = std::abs(x - decoded.v(static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(c)));
          CHECK(missed <= nearest + 1e-3 * map.scale);  // less where a slot has the residual
        }
    }
}

TEST_CASE("with slots such a cache misses less", "[cache]") {
  double missed[2] = {};
  for (bool const sparse : {false, true}) {
    auto cache = small(sparse ? 0.01 : 0);
    auto const tokens = sequence_of(cache, adaptive_stream(), 2 + 3 * 64);
    auto const held = reference::read_layer(cache, adaptive_artifact(sparse ? 0.01 : 0), tokens, 0);
    for (std::size_t t = 0; t < 2 + 3 * 64; ++t)
      for (std::size_t c = 0; c < 64; ++c)
        missed[sparse] += squared(held.k(static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(c)) -
                                  static_cast<double>(adaptive_stream().keys(0, 0, 512)(t, c)));
  }
  CHECK(missed[1] < missed[0]);
}

TEST_CASE("truncated and appended again, forked, dropped: the same bytes", "[cache]") {
  auto cache = small();
  auto whole = sequence_of(cache, adaptive_stream(), 300);
  auto const expected = contents_of(cache, whole);
  auto other = cache.fork(whole);
  for (std::size_t const tokens : {299u, 140u, 66u, 65u, 2u, 0u}) {
    CAPTURE(tokens);
    cache.truncate(other, tokens);
    append_tokens(cache, other, adaptive_stream(), tokens, 300 - tokens);
    CHECK(contents_of(cache, other) == expected);
  }
  CHECK(contents_of(cache, whole) == expected);
  auto const pages = pages_of(cache, whole);
  cache.drop(other, 2, 64);
  CHECK(pages_of(cache, other).front() == pages[2]);  // two heads to a page
  auto byte_by_byte = cache.open();
  for (std::size_t t = 0; t < 300; ++t) append_tokens(cache, byte_by_byte, adaptive_stream(), t, 1);
  CHECK(contents_of(cache, byte_by_byte) == expected);
}

TEST_CASE("saved and loaded, and refused by a cache of other widths", "[cache]") {
  auto cache = small();
  auto const tokens = sequence_of(cache, adaptive_stream(), 200);
  auto const file = saved(cache, tokens);
  CHECK(contents_of(cache, loaded(cache, file)) == contents_of(cache, tokens));
  artifact<adaptive_spec> narrow = adaptive_artifact();
  for (layer_artifact& layer : narrow.layers) {
    std::fill(layer.key_channels.widths.begin(), layer.key_channels.widths.end(), std::uint8_t{2});
    layer.key_channels.levels.front() = {-1, -0.5f, 0.5f, 1};
    std::fill(layer.key_channels.table_of.begin(), layer.key_channels.table_of.end(), std::uint16_t{0});
  }
  narrow.info.key_token_bits = 64;
  adaptive_cache other(narrow, {.max_tokens = 64 * 16, .sinks = 2});
  thrown const refused = error_of([&] { loaded(other, file); });
  CHECK(refused.code == errc::bad_format);
  CHECK_THAT(refused.text, says("k_token_bits is 80, expected 64"));
}

TEST_CASE("values beyond what calibration saw are clamped and counted, once for each that is sealed", "[cache]") {
  artifact<adaptive_spec> it = adaptive_artifact();
  for (layer_artifact& layer : it.layers)
    for (channel_codes* const codes : {&layer.key_channels, &layer.value_channels})
      std::fill(codes->seen.begin(), codes->seen.end(), make_range(-1, 1));
  adaptive_cache cache(it, {.max_tokens = 64 * 16, .sinks = 2});
  auto tokens = cache.open();
  CHECK(cache.clamps().keys == 0);
  append_tokens(cache, tokens, adaptive_stream(), 0, 2 + 63);
  CHECK(cache.clamps().keys == 0);
  append_tokens(cache, tokens, adaptive_stream(), 65, 70);
  std::uint64_t beyond_keys = 0, beyond_values = 0;
  for (int layer = 0; layer < 2; ++layer)
    for (std::size_t t = 2; t < 2 + 2 * 64; ++t)
      for (std::size_t c = 0; c < 64; ++c) {
        beyond_keys += std::abs(to_float(to_half(adaptive_stream().keys(layer, t, 1)(0, c)))) > 1 ? 1u : 0u;
        beyond_values += std::abs(to_float(to_half(adaptive_stream().values(layer, t, 1)(0, c)))) > 1 ? 1u : 0u;
      }
  clamp_counts const found = cache.clamps();
  CHECK(found.keys == 2 * 2 * 64 * 64);
  CHECK(found.values == found.keys);
  CHECK(found.clamped_keys == beyond_keys);
  CHECK(found.clamped_values == beyond_values);
  CHECK(found.key_rate() == Approx(static_cast<double>(beyond_keys) / static_cast<double>(found.keys)));

  canonical_page<adaptive_spec> page;  // far beyond, a code reads as the outermost level
  float_matrix far(64, 64, 1000.0f);
  cache.truncate(tokens, 2);
  for (int layer = 0; layer < 2; ++layer) cache.append(tokens, layer, far.view(), far.view());
  cache.read_page(tokens, 0, 0, 0, page);
  for (std::size_t c = 0; c < 32; ++c) CHECK(page.k_codes[c] == (1 << it.layers[0].key_channels.widths[c]) - 1);
}

TEST_CASE("an artifact whose heads have other bits than it says is refused", "[cache]") {
  artifact<adaptive_spec> it = adaptive_artifact();
  it.info.key_token_bits = 72;
  CHECK_THROWS_WITH(adaptive_cache(it, {.max_tokens = 64}), says("keys of head 0 have 80 bits a token, expected 72"));
  it = adaptive_artifact();
  std::swap(it.layers[1].value_channels.widths[0], it.layers[1].value_channels.widths[40]);
  CHECK_THROWS_AS(adaptive_cache(it, {.max_tokens = 64}), error);
  it = adaptive_artifact();
  it.info.value_token_bits = 16;
  CHECK_THROWS_WITH(adaptive_cache(it, {.max_tokens = 64}), says("16 bits for a token's codes, expected 32 to 128"));
}
