#include "kvquant/reference/pages.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/cache/row_major_layout.hpp"
#include "kvquant/core/error.hpp"
#include "test/support/hand_made_artifact.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;
using reference::matrix;

using mixed_spec = spec<nuq<2>, nuq<3>>;

constexpr std::size_t head_dim = 16;

/// Two KV heads, two layers; fitted formats decode to other levels than they compare with.
artifact<mixed_spec> tables_for(std::vector<float_matrix> const& keys, double outliers_k, double outliers_v) {
  return hand_made_artifact<mixed_spec>({.shape = {.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = head_dim},
                                         .outliers_k = outliers_k,
                                         .outliers_v = outliers_v,
                                         .q_norm = true},
                                        keys);
}

std::vector<float_matrix> random_layers(std::size_t tokens, std::uint64_t seed) {
  return {random_keys(tokens, 2 * head_dim, seed), random_keys(tokens, 2 * head_dim, seed + 1)};
}

/// The slots of these indices, residual 1, 2, …
std::vector<outlier> slots_at(std::vector<std::uint16_t> const& indices) {
  std::vector<outlier> out;
  for (std::uint16_t const index : indices) out.push_back({index, to_half(static_cast<float>(out.size() + 1))});
  return out;
}

std::vector<std::uint16_t> indices_of(std::vector<outlier> const& slots) {
  std::vector<std::uint16_t> out;
  for (outlier const it : slots) out.push_back(it.index);
  return out;
}

matrix row(std::vector<double> const& values) {
  return Eigen::Map<matrix const>(values.data(), 1, static_cast<Eigen::Index>(values.size()));
}

}  // namespace

TEST_CASE("a page decodes by channel for keys, by token for values, residuals added", "[reference]") {
  auto const it = tables_for(random_layers(100, 1), 0.01, 0.01);
  canonical_page<mixed_spec> page(make_page_geometry(head_dim, 2, 3, 0, 0));
  for (std::size_t i = 0; i < page.k_codes.size(); ++i) {
    page.k_codes[i] = static_cast<std::uint8_t>(i % 4);
    page.v_codes[i] = static_cast<std::uint8_t>(i % 7);
  }
  for (std::size_t t = 0; t < page_tokens; ++t)
    page.v_ranges[t] = make_range(-1.0f - static_cast<float>(t), 3.0f + static_cast<float>(t));  // zero 1, scale 2 + t
  page.k_slots = slots_at({0, 17, 1023});
  page.v_slots = slots_at({5, 1008});
  int const layer = GENERATE(0, 1), head = GENERATE(0, 1);
  auto const read = reference::decode_page(page, it, layer, head);
  auto const& tables = it.layers[static_cast<std::size_t>(layer)];
  REQUIRE(read.k.rows() == 64);
  REQUIRE(read.v.cols() == 16);
  matrix k(64, 16), v(64, 16);
  for (Eigen::Index i = 0; i < 64 * 16; ++i) {
    auto const channel = static_cast<std::size_t>(head * 16 + i % 16);
    double const low = tables.key_ranges[channel].low(), high = tables.key_ranges[channel].high();
    double const k_level = tables.key.decode_levels[static_cast<std::size_t>(i % 4)];
    double const v_level = tables.value.decode_levels[static_cast<std::size_t>(i % 7)];
    k(i / 16, i % 16) = (high - low) / 2 * k_level + (high + low) / 2;
    v(i / 16, i % 16) = (2.0 + static_cast<double>(i / 16)) * v_level + 1;
  }
  k(0, 0) += 1;
  k(1, 1) += 2;
  k(63, 15) += 3;
  v(0, 5) += 1;
  v(63, 0) += 2;
  CHECK((read.k - k).cwiseAbs().maxCoeff() < 1e-5);
  CHECK((read.v - v).cwiseAbs().maxCoeff() < 1e-5);
}

TEST_CASE("a layer reads as sinks, pages and tail in the order of its tokens", "[reference]") {
  auto const k = random_layers(200, 3), v = random_layers(200, 5);
  auto const it = tables_for(k, 0.02, 0.02);
  int const sinks = GENERATE(0, 3, 70), recent_pages = GENERATE(0, 1);
  kv_cache<mixed_spec, row_major_layout<mixed_spec>> cache(
      it, {.max_tokens = 256, .sinks = sinks, .recent_pages = recent_pages});
  auto tokens = cache.open();
  for (int layer = 0; layer < 2; ++layer)
    cache.append(tokens, layer, k[static_cast<std::size_t>(layer)].view(), v[static_cast<std::size_t>(layer)].view());
  auto const first_sealed = static_cast<std::size_t>(sinks);
  for (int layer = 0; layer < 2; ++layer) {
    auto const read = reference::read_layer(cache, it, tokens, layer);
    std::size_t const end_of_pages = first_sealed + cache.view(tokens, layer).sealed;
    REQUIRE(read.k.rows() == 200);
    REQUIRE(read.v.cols() == 32);
    REQUIRE(end_of_pages > first_sealed);
    auto const check = [&](matrix const& got, float_matrix const& given, auto&& quantizers) {
      for (std::size_t t = 0; t < 200; ++t)
        for (std::size_t c = 0; c < 32; ++c) {
          double const x = got(static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(c));
          double const stored = round_to_half(given.view()(t, c));
          bool const exact = t < first_sealed || t >= end_of_pages;
          CAPTURE(sinks, recent_pages, layer, t, c);
          if (exact) REQUIRE(x == stored);
          if (!exact) REQUIRE(std::abs(x - stored) < quantizers(t, c));
        }
    };
    // Between levels: nothing is further off than the range is wide, or it would have been kept sparse.
    check(read.k, k[static_cast<std::size_t>(layer)],
          [&](std::size_t, std::size_t c) { return 4.0 * static_cast<double>(it.keys(layer).map(c).scale); });
    check(read.v, v[static_cast<std::size_t>(layer)], [](std::size_t, std::size_t) { return 30.0; });
  }
}

TEST_CASE("a re-opened page is read up to its last token", "[reference]") {
  auto const k = random_layers(150, 7), v = random_layers(150, 9);
  auto const it = tables_for(k, 0.02, 0.02);
  kv_cache<mixed_spec, row_major_layout<mixed_spec>> cache(it, {.max_tokens = 256});
  auto tokens = cache.open();
  for (std::size_t layer = 0; layer < 2; ++layer)
    cache.append(tokens, static_cast<int>(layer), k[layer].view(), v[layer].view());
  auto const before = reference::read_layer(cache, it, tokens, 1);
  cache.truncate(tokens, 100);
  auto const cut = reference::read_layer(cache, it, tokens, 1);
  CHECK(cut.k == before.k.topRows(100));
  CHECK(cut.v == before.v.topRows(100));
  cache.append(tokens, 1, k[1].view().middle_rows(100, 10), v[1].view().middle_rows(100, 10));
  auto const longer = reference::read_layer(cache, it, tokens, 1);
  CHECK(longer.k.topRows(100) == before.k.topRows(100));
  CHECK(longer.k(105, 3) == static_cast<double>(round_to_half(k[1].view()(105, 3))));
}

TEST_CASE("an empty sequence reads as nothing", "[reference]") {
  auto const it = tables_for(random_layers(10, 11), 0, 0);
  kv_cache<mixed_spec, row_major_layout<mixed_spec>> cache(it, {.max_tokens = 64});
  auto const read = reference::read_layer(cache, it, cache.open(), 0);
  CHECK(read.k.rows() == 0);
  CHECK(read.v.cols() == 32);
}

TEST_CASE("slots go to the largest weighted residuals, by rising index", "[reference]") {
  matrix const x = row({1, -5, 2, 0, 3, 0.5}), dense = matrix::Zero(1, 6);
  std::vector<float> const even(6, 1.0f);
  auto const kept = reference::select_slots(x, dense, even, 3);
  CHECK(indices_of(kept) == std::vector<std::uint16_t>{1, 2, 4});
  CHECK(to_float(kept[0].residual) == -5);
  CHECK(to_float(kept[2].residual) == 3);
  CHECK(indices_of(reference::select_slots(x, dense, {100, 1, 1, 1, 0, 1000}, 3)) ==
        std::vector<std::uint16_t>{0, 1, 5});
  CHECK(reference::select_slots(x, dense, even, 0).empty());
  CHECK(indices_of(reference::select_slots(x, dense, even, 6)) == std::vector<std::uint16_t>{0, 1, 2, 3, 4, 5});
}

TEST_CASE("residuals are against the dense values, and weigh by their channel in every token", "[reference]") {
  matrix x(3, 2), dense(3, 2);
  x << 10, 10, 20, 20, 30, 30;
  dense << 9, 10, 20, 16, 32, 30;  // residuals 1 0, 0 4, -2 0
  CHECK(indices_of(reference::select_slots(x, dense, {1, 1}, 1)) == std::vector<std::uint16_t>{3});
  CHECK(indices_of(reference::select_slots(x, dense, {5, 1}, 1)) == std::vector<std::uint16_t>{4});
  auto const two = reference::select_slots(x, dense, {1, 1}, 2);
  CHECK(indices_of(two) == std::vector<std::uint16_t>{3, 4});
  CHECK(to_float(two[1].residual) == -2);
}

TEST_CASE("equal weights are told apart by residual, and equal residuals by index", "[reference]") {
  matrix const zero = matrix::Zero(1, 4);
  // 4 · 1² = 1 · 2²
  CHECK(indices_of(reference::select_slots(row({1, 2, 1, 2}), zero, {4, 1, 4, 1}, 2)) ==
        std::vector<std::uint16_t>{1, 3});
  CHECK(indices_of(reference::select_slots(row({3, -3, 3, 3}), zero, {1, 1, 1, 1}, 2)) ==
        std::vector<std::uint16_t>{0, 1});
  CHECK(indices_of(reference::select_slots(row({3, 7, 3, 9}), zero, {0, 0, 0, 0}, 2)) ==
        std::vector<std::uint16_t>{1, 3});
}

TEST_CASE("what weighs is the residual as binary16 keeps it", "[reference]") {
  // Both read as 2048 and weigh the same: the lower index wins.
  auto const kept = reference::select_slots(row({2048, 2048.9}), matrix::Zero(1, 2), {1, 1}, 1);
  CHECK(indices_of(kept) == std::vector<std::uint16_t>{0});
  CHECK(to_float(kept[0].residual) == 2048);
}
