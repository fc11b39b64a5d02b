#include "backends/cpu/quad_layout.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kvquant/quantize/spec.hpp"
#include "test/support/page_widths.hpp"
#include "test/support/random_page.hpp"

namespace {

using namespace kvquant;
using cpu::block_codes;

/// The codes of one side, [chunks, block_codes].
std::vector<std::array<std::uint8_t, block_codes>> unpacked(std::uint8_t const* from, channel_order const& order,
                                                            std::size_t head_dim) {
  std::vector<std::array<std::uint8_t, block_codes>> chunks(head_dim / 8);
  for (std::size_t chunk = 0; chunk < chunks.size(); ++chunk)
    cpu::with_width(order.widths[chunk], [&](auto bits) {
      cpu::unpack_blocks<bits()>(from, chunks[chunk]);
      from += cpu::packed_block_bytes<bits()>;
    });
  return chunks;
}

template <class S>
void check_codes(page_geometry const& geometry, canonical_page<S> const& page, std::uint8_t const* bytes) {
  std::size_t const d = geometry.head_dim;
  auto const of_keys = key_order(geometry), of_values = value_order(geometry);
  auto const keys = unpacked(bytes, of_keys, d);
  auto const values = unpacked(bytes + geometry.k_code_bytes(), of_values, d);
  std::size_t differing = 0;
  for (std::size_t token = 0; token < page_tokens; ++token) {
    for (std::size_t place = 0; place < d / 2; ++place) {
      auto const [first, second] = pair_of(geometry, of_keys.at[place]);
      std::size_t const block = place % 4 / 2 * 4 + token / 16, at = block * 64 + token % 16 * 4 + place % 2 * 2;
      differing += keys[place / 4][at] != page.k_codes[token * d + first];
      differing += keys[place / 4][at + 1] != page.k_codes[token * d + second];
    }
    for (std::size_t place = 0; place < d; ++place) {
      bool const by_channel = is_by_channel<typename S::value_format>;
      std::size_t const unit = by_channel ? place / 8 : place / 16 * 2 + token / 32;
      std::size_t const at =
          by_channel ? token / 8 * 64 + place % 8 * 8 + token % 8 : token % 32 / 4 * 64 + place % 16 * 4 + token % 4;
      differing += values[unit][at] != page.v_codes[token * d + of_values.at[place]];
    }
  }
  CHECK(differing == 0);
}

template <class Slot>
void check_slots(page_geometry const& geometry, std::vector<outlier> const& slots, std::uint8_t const* bytes) {
  std::vector<outlier> lying(slots.size());
  if (!slots.empty()) std::memcpy(lying.data(), bytes, slots.size() * sizeof(outlier));
  auto const by_index = [](outlier a, outlier b) { return a.index < b.index; };
  CHECK(std::is_sorted(lying.begin(), lying.end(), by_index));
  for (outlier& it : lying) it.index = static_cast<std::uint16_t>(Slot::decode(geometry, it.index));
  std::sort(lying.begin(), lying.end(), by_index);
  auto const same = [](outlier a, outlier b) { return a.index == b.index && a.residual == b.residual; };
  CHECK(std::equal(lying.begin(), lying.end(), slots.begin(), slots.end(), same));
}

template <class S>
void check(int head_dim, double fraction, rope_pairing pairing, int rotary_dim) {
  using layout = cpu::quad_layout<S>;
  CAPTURE(S::name(), head_dim, static_cast<int>(pairing), rotary_dim, fraction);
  test::sized_page<S> const sized(head_dim, fraction, fraction, pairing, rotary_dim);
  page_geometry const& geometry = sized.geometry;
  auto const page = test::random_page<S>(geometry, geometry.head_dim);
  std::vector<std::byte> bytes(layout::page_bytes(geometry), std::byte{0x55});
  layout::write(geometry, page, bytes);
  auto const* const from = reinterpret_cast<std::uint8_t const*>(bytes.data());
  cpu::quad_offsets const at(geometry);
  check_codes<S>(geometry, page, from);
  check_slots<cpu::key_slot>(geometry, page.k_slots, from + at.k_slots);
  check_slots<cpu::value_slot>(geometry, page.v_slots, from + at.v_slots);
  canonical_page<S> back(geometry);
  layout::read(geometry, bytes, back);
  CHECK((back == page));
}

using quad_specs = type_list<spec<nuq<2>, nuq<4>>, spec<nuq<3>, nuq<3>>, spec<nuq<4>, nuq<2>>, spec<nuq<1>, nuq<1>>,
                             spec<adaptive, adaptive>, spec<nuq<3>, adaptive>, spec<adaptive, nuq<2>>>;

}  // namespace

TEMPLATE_LIST_TEST_CASE("codes and slots of a page lie where kernels look for them", "[quad_layout]", quad_specs) {
  int const head_dim = GENERATE(16, 48, 80, 128, 256);
  auto const pairing = GENERATE(rope_pairing::half_split, rope_pairing::interleaved);
  double const fraction = GENERATE(0.0, 0.02, 0.7);
  for (int const rotary_dim : {0, 6, head_dim / 4, head_dim}) check<TestType>(head_dim, fraction, pairing, rotary_dim);
}

TEST_CASE("channels of one width lie together, in their own order", "[quad_layout]") {
  test::sized_page<spec<adaptive, adaptive>> const sized(64, 0, 0, rope_pairing::half_split, 64);
  auto const keys = key_order(sized.geometry), values = value_order(sized.geometry);
  std::vector<std::size_t> seen(64);
  for (std::size_t place = 0; place < 64; ++place) {
    std::size_t const channel = values.at[place], width = values.widths[place / 8];
    ++seen[channel];
    CHECK(width == sized.v_widths[channel]);
    CHECK(width == sized.k_widths[pair_of(sized.geometry, keys.at[place / 2]).first]);
    if (place % 8 > 0) CHECK(channel > values.at[place - 1]);
    if (place % 8 == 0 && place > 0)
      CHECK(values.starts[place / 8] == values.starts[place / 8 - 1] + 64u * values.widths[place / 8 - 1]);
  }
  CHECK(seen == std::vector<std::size_t>(64, 1));
}

TEST_CASE("widths that do not fill chunks, or differ within a pair, are refused", "[quad_layout]") {
  test::sized_page<spec<adaptive, adaptive>> sized(64, 0, 0, rope_pairing::half_split, 64);
  auto const other = [](std::uint8_t width) { return static_cast<std::uint8_t>(width % 4 + 1); };
  sized.v_widths[5] = other(sized.v_widths[5]);
  CHECK_THROWS_WITH(value_order(sized.geometry), Catch::Contains("no multiple of 8 in a head"));
  sized.k_widths[3] = other(sized.k_widths[3]);
  CHECK_THROWS_WITH(key_order(sized.geometry), Catch::Contains("which RoPE turns with it"));
  sized.k_widths[35] = sized.k_widths[3];
  CHECK_THROWS_WITH(key_order(sized.geometry), Catch::Contains("no multiple of 4 in a head"));
}
