#include "backends/cpu/quad_layout.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "test/support/random_page.hpp"

namespace {

using namespace kvquant;
using cpu::block_codes;

/// The codes of one side, [packed units of eight blocks, block_codes].
template <int Bits>
std::vector<std::array<std::uint8_t, block_codes>> unpacked(std::uint8_t const* from, std::size_t head_dim) {
  std::vector<std::array<std::uint8_t, block_codes>> units(head_dim / 8);
  for (auto& unit : units) {
    cpu::unpack_blocks<Bits>(from, unit);
    from += cpu::packed_block_bytes<Bits>;
  }
  return units;
}

template <class S>
void check_codes(page_geometry const& geometry, canonical_page<S> const& page, std::uint8_t const* bytes) {
  std::size_t const d = geometry.head_dim;
  auto const keys = unpacked<S::key_format::bits>(bytes, d);
  auto const values = unpacked<S::value_format::bits>(bytes + geometry.k_code_bytes(), d);
  std::size_t differing = 0;
  for (std::size_t token = 0; token < page_tokens; ++token) {
    for (std::size_t pair = 0; pair < d / 2; ++pair) {
      auto const [first, second] = pair_of(geometry, pair);
      std::size_t const block = pair % 4 / 2 * 4 + token / 16, at = block * 64 + token % 16 * 4 + pair % 2 * 2;
      differing += keys[pair / 4][at] != page.k_codes[token * d + first];
      differing += keys[pair / 4][at + 1] != page.k_codes[token * d + second];
    }
    for (std::size_t channel = 0; channel < d; ++channel) {
      std::size_t const unit = channel / 16 * 2 + token / 32, at = token % 32 / 4 * 64 + channel % 16 * 4 + token % 4;
      differing += values[unit][at] != page.v_codes[token * d + channel];
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
void check(page_geometry const& geometry) {
  using layout = cpu::quad_layout<S>;
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

}  // namespace

TEST_CASE("codes and slots of a page lie where kernels look for them", "[quad_layout]") {
  int const head_dim = GENERATE(16, 48, 80, 128, 256);
  auto const pairing = GENERATE(rope_pairing::half_split, rope_pairing::interleaved);
  double const fraction = GENERATE(0.0, 0.02, 0.7);
  for (int const rotary_dim : {0, 6, head_dim / 4, head_dim}) {
    CAPTURE(head_dim, static_cast<int>(pairing), rotary_dim, fraction);
    auto const in = [&](int k_bits, int v_bits) {
      auto geometry = make_page_geometry(head_dim, k_bits, v_bits, fraction, fraction);
      geometry.pairing = pairing;
      geometry.rotary_dim = static_cast<std::size_t>(rotary_dim);
      return geometry;
    };
    check<spec<nuq<2>, nuq<4>>>(in(2, 4));
    check<spec<nuq<3>, nuq<3>>>(in(3, 3));
    check<spec<nuq<4>, nuq<2>>>(in(4, 2));
  }
}
