#include "backends/cuda/quartets.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include "backends/cuda/width_order.hpp"

namespace {

using namespace kvquant::cuda;

/// Calls `f(widths)`, rising, for all ways to give `chunks` chunks 1 to 4 bits.
template <class F>
void for_all_widths(std::size_t chunks, F&& f) {
  for (std::size_t ones = 0; ones <= chunks; ++ones)
    for (std::size_t twos = 0; ones + twos <= chunks; ++twos)
      for (std::size_t threes = 0; ones + twos + threes <= chunks; ++threes) {
        std::vector<std::uint8_t> widths(chunks, 4);
        std::fill_n(widths.begin(), ones + twos + threes, std::uint8_t{3});
        std::fill_n(widths.begin(), ones + twos, std::uint8_t{2});
        std::fill_n(widths.begin(), ones, std::uint8_t{1});
        f(widths);
      }
}

int cells_in(quartet_plan const& plan) {
  int cells = 0;
  for (quartet const it : plan.quartets) cells += cells_of(it.kind);
  return cells;
}

void check_plan(std::vector<std::uint8_t> const& widths) {
  CAPTURE(widths);
  quartet_plan const plan(widths, 5);
  auto chunks = plan.chunks;
  std::sort(chunks.begin(), chunks.end());
  std::vector<std::size_t> all(widths.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  CHECK(chunks == all);
  CHECK(plan.quartets.size() == (widths.size() + 3) / 4);
  int next = 5;
  for (std::size_t i = 0; i < plan.chunks.size(); ++i) {
    quartet const it = plan.quartets[i / 4];
    CHECK(width_in(it.kind, static_cast<int>(i % 4)) >= widths[plan.chunks[i]]);
    if (i % 4 == 0) {
      CHECK(it.start == next * cell_bytes);
      next += cells_of(it.kind);
    }
  }
  int const bits = std::accumulate(widths.begin(), widths.end(), 0);
  CHECK(cells_in(plan) <= cells_for(static_cast<int>(widths.size()) * 8, bits * 8));
  if (widths.size() % 4 == 0) CHECK(cells_in(plan) == (bits + 3) / 4);
}

}  // namespace

TEST_CASE("a quartet's codes fill its cells", "[cuda]") {
  for (int kind = 0; kind < quartet_kinds; ++kind) {
    std::set<int> bits;
    for (int chunk = 0; chunk < quartet_chunks; ++chunk)
      for (int plane = 0; plane < width_in(kind, chunk); ++plane) bits.insert(plane_in(kind, chunk, plane));
    CAPTURE(kind);
    CHECK(static_cast<int>(bits.size()) == 4 * cells_of(kind));
    CHECK(*bits.rbegin() == 4 * cells_of(kind) - 1);
  }
}

TEST_CASE("a quartet's cells of all lanes lie side by side", "[cuda]") {
  for (int cells = 1; cells <= 4; ++cells) {
    std::set<int> offsets;
    for (int cell = 0; cell < cells; ++cell)
      for (int lane = 0; lane < warp_lanes; ++lane) offsets.insert(cell_offset(cells, cell, lane));
    CHECK(static_cast<int>(offsets.size()) == cells * warp_lanes);
    CHECK(*offsets.rbegin() == cells * cell_bytes - 2);
  }
}

TEST_CASE("there are quartets for all widths of a head, in no more bits where its chunks make fours", "[cuda]") {
  for (std::size_t const chunks : {2u, 6u, 8u, 10u, 12u, 16u, 32u}) for_all_widths(chunks, check_plan);
}
