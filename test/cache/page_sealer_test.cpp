#include "kvquant/cache/page_sealer.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvquant/reference/pages.hpp"
#include "test/support/coded.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;
using reference::matrix;

namespace {

using sealed_specs =
    type_list<spec<nuq<2>, nuq<2>>, spec<nuq<3>, nuq<3>>, spec<nuq<4>, nuq<4>>, spec<uniform<4>, uniform<4>>,
              spec<normal_float<3>, normal_float<3>>, spec<nuq<4>, uniform<2>>>;

/// One page of tokens as binary16 keeps them.
struct exact_page {
  std::size_t channels;
  std::vector<half> k, v;
  exact_page(token_stream const& from, std::size_t first)
      : channels(from.k[0].cols),
        k(to_halves(from.keys(0, first, page_tokens))),
        v(to_halves(from.values(0, first, page_tokens))) {}

  view2d<half const> keys() const { return {k.data(), page_tokens, channels}; }
  view2d<half const> values() const { return {v.data(), page_tokens, channels}; }
};

matrix to_matrix(view2d<half const> x) {
  matrix out(static_cast<Eigen::Index>(x.rows), static_cast<Eigen::Index>(x.cols));
  for (std::size_t row = 0; row < x.rows; ++row)
    for (std::size_t col = 0; col < x.cols; ++col)
      out(static_cast<Eigen::Index>(row), static_cast<Eigen::Index>(col)) = to_float(x(row, col));
  return out;
}

template <Spec S>
page_geometry geometry_of(artifact<S> const& it) {
  return geometry_for<S>(it.info);
}

/// Seals the last tokens of a page over what `mine.page` has of the first `reused`.
template <Spec S>
void seal(page_sealer<S> const& sealer, std::size_t head, exact_page const& tokens, std::size_t reused,
          typename page_sealer<S>::worker& mine) {
  std::size_t const fresh = page_tokens - reused;
  auto const values = tokens.values().middle_rows(reused, fresh);
  std::vector<value_range> ranges;
  for (std::size_t token = 0; token < fresh; ++token) ranges.push_back(sealer.range_of(values.row(token), mine));
  sealer.seal(head, tokens.keys().middle_rows(reused, fresh), values, ranges, reused, mine);
}

template <Spec S>
canonical_page<S> sealed(page_sealer<S> const& sealer, std::size_t head, exact_page const& tokens) {
  auto mine = sealer.make_worker();
  seal(sealer, head, tokens, 0, mine);
  return mine.page;
}

void check_slots(std::vector<outlier> const& slots, std::vector<outlier> const& expected) {
  REQUIRE(slots.size() == expected.size());
  std::size_t differing = 0;
  for (std::size_t i = 0; i < slots.size(); ++i)
    differing += slots[i].index != expected[i].index || slots[i].residual != expected[i].residual;
  CHECK(differing == 0);
}

/// One side of one head against the reference: `coded` is of all heads, `decode(token, channel, code)` what a code
/// reads as in single precision.
template <Format F, class Decode>
void check_side(matrix const& exact, reference::coded_matrix const& coded, typename F::table const& table,
                std::vector<typename F::code_type> const& codes, std::vector<outlier> const& slots, std::size_t head,
                std::vector<float> const& sensitivity, Decode&& decode) {
  auto const d = static_cast<Eigen::Index>(codes.size() / page_tokens), first = static_cast<Eigen::Index>(head) * d;
  matrix const dense = coded.dense().middleCols(first, d), x = exact.middleCols(first, d);
  matrix as_read(x.rows(), d);
  for (Eigen::Index t = 0; t < x.rows(); ++t)
    for (Eigen::Index c = 0; c < d; ++c) {
      auto const code = codes[static_cast<std::size_t>(t * d + c)];
      double const scale = coded.scale(coded.scale.rows() == 1 ? 0 : t, coded.scale.cols() == 1 ? 0 : first + c);
      double const zero = coded.zero(coded.zero.rows() == 1 ? 0 : t, coded.zero.cols() == 1 ? 0 : first + c);
      check_code<F>(table, code, coded.codes(t, first + c), (x(t, c) - zero) / scale);
      as_read(t, c) = decode(static_cast<std::size_t>(t), static_cast<std::size_t>(first + c), code);
      if (code == coded.codes(t, first + c))
        CHECK(std::abs(as_read(t, c) - dense(t, c)) < 1e-5 * (scale + std::abs(zero)));
    }
  std::vector<float> const of_head(sensitivity.begin() + first, sensitivity.begin() + first + d);
  check_slots(slots, reference::select_slots(x, as_read, of_head, slots.size()));
}

template <Spec S>
void check_against_reference(artifact<S> const& it, exact_page const& tokens) {
  page_sealer<S> const sealer(it, 0, geometry_of(it));
  auto const& k_table = sealer.keys().table();
  auto const& v_table = sealer.values().table();
  matrix const k = to_matrix(tokens.keys()), v = to_matrix(tokens.values());
  auto const k_coded =
      reference::quantize_keys(k, it.layers[0].key_ranges, levels_of<typename S::key_format>(k_table), false);
  auto const v_coded =
      reference::quantize_values(v, it.info.outlier_fraction_v, levels_of<typename S::value_format>(v_table));
  for (int head = 0; head < it.info.shape.kv_heads; ++head) {
    auto const page = sealed(sealer, static_cast<std::size_t>(head), tokens);
    for (std::size_t t = 0; t < page_tokens; ++t) {
      affine const map = affine_of(page.v_ranges[t]);
      CHECK(map.scale == v_coded.scale(static_cast<Eigen::Index>(t), 0));
      CHECK(map.zero == v_coded.zero(static_cast<Eigen::Index>(t), 0));
    }
    check_side<typename S::key_format>(
        k, k_coded, k_table, page.k_codes, page.k_slots, static_cast<std::size_t>(head), it.layers[0].key_sensitivity,
        [&](std::size_t, std::size_t channel, auto code) { return sealer.keys().decode(channel, code); });
    check_side<typename S::value_format>(v, v_coded, v_table, page.v_codes, page.v_slots,
                                         static_cast<std::size_t>(head), it.layers[0].value_sensitivity,
                                         [&](std::size_t token, std::size_t, auto code) {
                                           return sealer.values().decode(affine_of(page.v_ranges[token]), code);
                                         });
  }
}

/// A page of three values only, so that residuals are equal by the hundred.
exact_page with_ties(token_stream stream) {
  for (auto* const side : {&stream.k[0], &stream.v[0]})
    for (std::size_t i = 0; i < side->values.size(); ++i) side->values[i] = static_cast<float>(i * i % 3) - 1;
  return {stream, 0};
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("codes, ranges and slots are those of the reference", "[cache]", sealed_specs) {
  auto const [kv_heads, head_dim] = GENERATE(table<int, int>({{2, 16}, {1, 80}, {3, 48}}));
  auto const [fraction_k, fraction_v] = GENERATE(table<double, double>({{0, 0}, {0.02, 0.05}, {0.02, 0}, {0, 0.05}}));
  model_shape const shape{.layers = 1, .q_heads = kv_heads, .kv_heads = kv_heads, .head_dim = head_dim, .rope = {}};
  token_stream const stream(shape, 128);
  auto const it =
      artifact_for<TestType>(stream, {.shape = shape, .fraction_k = fraction_k, .fraction_v = fraction_v, .sinks = 0});
  check_against_reference(it, exact_page(stream, 64));
}

TEST_CASE("with sensitivities of zero the largest residuals are kept, of equal ones the first", "[cache]") {
  using S = spec<nuq<3>, nuq<3>>;
  artifact_choice const choice{.shape = {.layers = 1, .q_heads = 2, .kv_heads = 2, .head_dim = 16, .rope = {}}};
  token_stream const stream(choice.shape, 128);
  auto it = artifact_for<S>(stream, choice);
  check_against_reference(it, with_ties(stream));
  for (auto* const sensitivity : {&it.layers[0].key_sensitivity, &it.layers[0].value_sensitivity})
    std::fill(sensitivity->begin(), sensitivity->end(), 0.0f);
  check_against_reference(it, exact_page(stream, 0));
  check_against_reference(it, with_ties(stream));
  for (auto* const sensitivity : {&it.layers[0].key_sensitivity, &it.layers[0].value_sensitivity})
    std::fill(sensitivity->begin(), sensitivity->end(), 1e38f);  // every weight overflows: magnitudes decide
  check_against_reference(it, exact_page(stream, 0));
}

TEST_CASE("the slots of a selector by hand", "[cache]") {
  slot_selector selector;
  auto const chosen = [&](std::size_t slots) {
    selector.start(6);
    selector.offer(0, to_half(1), 1.0f);    // weight 1
    selector.offer(1, to_half(-2), 0.25f);  // weight 1, larger
    selector.offer(2, to_half(2), 0.25f);   // as the one before
    selector.offer(3, to_half(8), 0.0f);    // weight 0, largest
    selector.offer(4, to_half(0.5), 8.0f);  // weight 2
    selector.offer(5, to_half(0), 100.0f);  // weight 0
    std::vector<outlier> kept(slots);
    selector.finish(kept);
    std::vector<int> indices;
    for (outlier const it : kept) indices.push_back(it.index);
    return indices;
  };
  CHECK(chosen(0) == std::vector<int>{});
  CHECK(chosen(1) == std::vector{4});
  CHECK(chosen(2) == std::vector{1, 4});
  CHECK(chosen(3) == std::vector{1, 2, 4});
  CHECK(chosen(4) == std::vector{0, 1, 2, 4});
  CHECK(chosen(5) == std::vector{0, 1, 2, 3, 4});
  CHECK(chosen(6) == std::vector{0, 1, 2, 3, 4, 5});
}

TEMPLATE_LIST_TEST_CASE("sealing again over a page's own first tokens gives the page", "[cache]", sealed_specs) {
  token_stream const stream(artifact_choice{}.shape, 128);
  auto it = artifact_for<TestType>(stream);
  bool const with_sensitivity = GENERATE(true, false);
  if (!with_sensitivity) it.layers[0].key_sensitivity.assign(32, 0.0f);
  page_sealer<TestType> const sealer(it, 0, geometry_of(it));
  for (exact_page const& tokens : {exact_page(stream, 0), with_ties(stream)}) {
    auto const page = sealed(sealer, 1, tokens);
    auto mine = sealer.make_worker();
    for (std::size_t const reused : {1u, 17u, 32u, 63u, 64u}) {
      mine.page = page;
      seal(sealer, 1, tokens, reused, mine);
      CHECK((mine.page == page));
    }
  }
}

TEST_CASE("kept tokens keep codes and ranges, and compete with the residuals that they have", "[cache]") {
  using S = spec<nuq<2>, nuq<3>>;
  std::size_t const reused = GENERATE(as<std::size_t>(), 1, 30, 63);
  token_stream const stream(artifact_choice{}.shape, 128);
  auto const it = artifact_for<S>(stream);
  page_sealer<S> const sealer(it, 0, geometry_of(it));
  auto const before = sealed(sealer, 0, exact_page(stream, 0)), fresh = sealed(sealer, 0, exact_page(stream, 64));
  auto mine = sealer.make_worker();
  mine.page = before;
  seal(sealer, 0, exact_page(stream, 64), reused, mine);

  auto const at = static_cast<std::ptrdiff_t>(reused);
  auto const spliced = [](auto first, auto const& second, std::ptrdiff_t count) {
    std::copy(second.begin() + count, second.end(), first.begin() + count);
    return first;
  };
  CHECK(mine.page.k_codes == spliced(before.k_codes, fresh.k_codes, at * 16));
  CHECK(mine.page.v_codes == spliced(before.v_codes, fresh.v_codes, at * 16));
  for (std::size_t t = 0; t < page_tokens; ++t) {
    CHECK(mine.page.v_ranges[t].lower == (t < reused ? before : fresh).v_ranges[t].lower);
    CHECK(mine.page.v_ranges[t].upper == (t < reused ? before : fresh).v_ranges[t].upper);
  }

  matrix residuals = matrix::Zero(64, 16);
  for (outlier const kept : before.k_slots) residuals.data()[kept.index] = to_float(kept.residual);
  exact_page const tokens(stream, 64);
  for (std::size_t t = reused; t < page_tokens; ++t)
    for (std::size_t c = 0; c < 16; ++c)
      residuals(static_cast<Eigen::Index>(t), static_cast<Eigen::Index>(c)) =
          to_float(residual_of(to_float(tokens.keys()(t, c)), sealer.keys().decode(c, mine.page.k_codes[t * 16 + c])));
  check_slots(mine.page.k_slots, reference::select_slots(residuals, matrix::Zero(64, 16), it.layers[0].key_sensitivity,
                                                         before.k_slots.size()));
}

TEST_CASE("a page decodes to its dense values and its slots' residuals", "[cache]") {
  using S = spec<nuq<3>, uniform<4>>;
  token_stream const stream(artifact_choice{}.shape, 64);
  auto const it = artifact_for<S>(stream);
  page_sealer<S> const sealer(it, 1, geometry_of(it));
  auto page = sealed(sealer, 1, exact_page(stream, 0));
  auto const [k, v] = reference::decode_page(page, it, 1, 1);
  auto const k_slots = page.k_slots, v_slots = page.v_slots;
  for (auto* const slots : {&page.k_slots, &page.v_slots}) slots->clear();
  auto const dense = reference::decode_page(page, it, 1, 1);
  matrix k_rest = k - dense.k, v_rest = v - dense.v;
  for (Eigen::Index i = 0; i < k.size(); ++i) {
    auto const code = static_cast<std::size_t>(i);
    affine const map = affine_of(page.v_ranges[code / 16]);
    CHECK(dense.k.data()[i] == Approx(sealer.keys().decode(16 + code % 16, page.k_codes[code])).margin(1e-5));
    CHECK(dense.v.data()[i] == Approx(sealer.values().decode(map, page.v_codes[code])).margin(1e-5));
  }
  for (outlier const slot : k_slots) k_rest.data()[slot.index] -= to_float(slot.residual);
  for (outlier const slot : v_slots) v_rest.data()[slot.index] -= to_float(slot.residual);
  CHECK(k_rest.cwiseAbs().maxCoeff() < 1e-12);
  CHECK(v_rest.cwiseAbs().maxCoeff() < 1e-12);
}

TEST_CASE("a page of binary16 numbers has the very bits of its tokens, and decodes to them", "[cache]") {
  using S = spec<passthrough, passthrough>;
  artifact_choice const choice{.fraction_k = 0.02, .fraction_v = 0.05};
  token_stream stream(choice.shape, 64);
  for (auto* const side : {&stream.k[0], &stream.v[0]}) {  // the largest, the smallest, a zero below zero, no outlier
    auto& x = side->values;
    std::copy_n(std::array{65504.0f, -65504.0f, 0x1p-24f, -0.0f}.begin(), 4, x.begin());
    x.back() = 60000;
  }
  auto const it = artifact_for<S>(stream, choice);
  page_sealer<S> const sealer(it, 0, geometry_of(it));
  exact_page const tokens(stream, 0);
  for (std::size_t head = 0; head < 2; ++head) {
    auto const page = sealed(sealer, head, tokens);
    auto const decoded = reference::decode_page(page, it, 0, static_cast<int>(head));
    std::size_t differing = 0;
    for (std::size_t i = 0; i < page.k_codes.size(); ++i) {
      half const k = tokens.keys()(i / 16, 16 * head + i % 16), v = tokens.values()(i / 16, 16 * head + i % 16);
      differing += page.k_codes[i] != k.bits || page.v_codes[i] != v.bits;
      differing += decoded.k.data()[i] != to_float(k) || decoded.v.data()[i] != to_float(v);
    }
    CHECK(differing == 0);
    CHECK((page.k_slots.empty() && page.v_slots.empty()));
    for (value_range const range : page.v_ranges) CHECK((range.lower.bits == 0 && range.upper.bits == 0));
    auto mine = sealer.make_worker();
    mine.page = page;
    seal(sealer, head, tokens, 17, mine);
    CHECK((mine.page == page));
  }
}

TEST_CASE("a sealer refuses sensitivities that do not fit", "[cache]") {
  using S = spec<nuq<3>, nuq<3>>;
  token_stream const stream(artifact_choice{}.shape, 64);
  auto it = artifact_for<S>(stream);
  it.layers[1].value_sensitivity.pop_back();
  CHECK_NOTHROW(page_sealer<S>(it, 0, geometry_of(it)));
  auto const refused = error_of([&] { page_sealer<S>(it, 1, geometry_of(it)); });
  CHECK(refused.code == errc::bad_shape);
  CHECK_THAT(refused.text, says("layer 1") && says("32 key and 31 value channels, expected 32"));
  for (float const x : {-1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    it.layers[0].key_sensitivity[5] = x;
    CHECK(error_of([&] { page_sealer<S>(it, 0, geometry_of(it)); }).code == errc::bad_value);
  }
}
