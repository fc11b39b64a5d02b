#include "kvquant/attend/softmax_state.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <span>
#include <vector>

namespace {

using namespace kvquant;

constexpr float infinite = std::numeric_limits<float>::infinity();

/// Scores with one value each: the piece that online softmax makes of them.
struct piece {
  softmax_state state;
  std::vector<float> out;
};

struct tokens {
  std::vector<float> scores, values;

  piece slice(std::size_t first, std::size_t count) const {
    piece it{{}, {0}};
    for (std::size_t i = first; i < first + count; ++i) it.state.m = std::max(it.state.m, scores[i]);
    for (std::size_t i = first; i < first + count; ++i) {
      float const p = std::exp(scores[i] - it.state.m);
      it.state.l += p;
      it.out[0] += p * values[i];
    }
    return it;
  }
  piece all() const { return slice(0, scores.size()); }
};

tokens random_tokens(std::size_t count, float spread, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  tokens it;
  for (std::size_t i = 0; i < count; ++i) {
    it.scores.push_back(spread * normal(random));
    it.values.push_back(1 + std::abs(normal(random)));  // of one sign, so that relative errors mean something
  }
  return it;
}

piece merged(piece a, piece const& b) {
  merge_into(a.state, a.out, b.state, b.out);
  return a;
}

void check_same(piece const& a, piece const& b) {
  CHECK(a.state.m == b.state.m);
  CHECK(a.state.l == b.state.l);
  CHECK(a.out == b.out);
}

void check_close(piece const& a, piece const& b, double epsilon) {
  CHECK(a.state.m == b.state.m);  // the largest of the same scores
  CHECK(a.state.l == Approx(b.state.l).epsilon(epsilon));
  CHECK(a.out[0] == Approx(b.out[0]).epsilon(epsilon));
}

}  // namespace

TEST_CASE("a new state is empty, and one with a token is not", "[attend]") {
  CHECK(softmax_state{}.empty());
  CHECK(softmax_state{}.m == -infinite);
  CHECK_FALSE(softmax_state{-1e30f, 1}.empty());
}

TEST_CASE("merging by hand: both pieces are scaled to the larger score", "[attend]") {
  softmax_state const small{0, 2}, large{std::log(4.0f), 3};
  auto const [result, scale_a, scale_b] = merge(small, large);
  CHECK(result.m == large.m);
  CHECK(scale_a == Approx(0.25));
  CHECK(scale_b == 1);
  CHECK(result.l == Approx(3.5));
  auto const swapped = merge(large, small);
  CHECK(swapped.scale_a == 1);
  CHECK(swapped.scale_b == Approx(0.25));
  CHECK(swapped.result.l == result.l);

  piece const together = merged({small, {8, -4}}, {large, {1, 2}});
  CHECK(together.out[0] == Approx(8 * 0.25 + 1));
  CHECK(together.out[1] == Approx(-4 * 0.25 + 2));
}

TEST_CASE("an empty piece changes nothing, on either side", "[attend]") {
  piece const some{{-3.7f, 1.3f}, {0.1f, -7, 1e-40f}}, nothing{{}, {0, 0, 0}};
  check_same(merged(some, nothing), some);
  check_same(merged(nothing, some), some);
  check_same(merged(nothing, nothing), nothing);
  // What lies in the memory of an empty piece does not matter.
  piece const garbage{{}, {infinite, std::nanf(""), -infinite}};
  check_same(merged(some, garbage), some);
  check_same(merged(garbage, some), some);
}

TEST_CASE("pieces merge to one softmax over all, in double", "[attend]") {
  float const spread = GENERATE(0.0f, 1.0f, 30.0f, 1000.0f);
  auto const it = random_tokens(1000, spread, 1);
  double m = -infinite, l = 0, o = 0;
  for (float const score : it.scores) m = std::max(m, double{score});
  for (std::size_t i = 0; i < it.scores.size(); ++i) {
    double const p = std::exp(it.scores[i] - m);
    l += p;
    o += p * it.values[i];
  }
  for (std::size_t const length : {1u, 7u, 64u, 999u}) {
    piece all{{}, {0}};
    for (std::size_t first = 0; first < 1000; first += length)
      all = merged(all, it.slice(first, std::min<std::size_t>(length, 1000 - first)));
    CAPTURE(spread, length);
    CHECK(all.state.m == static_cast<float>(m));
    CHECK(all.state.l == Approx(l).epsilon(2e-5));
    CHECK(all.out[0] / all.state.l == Approx(o / l).epsilon(2e-5));
  }
}

TEST_CASE("merging is associative and commutative within rounding", "[attend]") {
  for (unsigned seed = 0; seed < 50; ++seed) {
    auto const it = random_tokens(30, 5, seed);
    piece const a = it.slice(0, 5), b = it.slice(5, 15), c = it.slice(20, 10);
    check_close(merged(merged(a, b), c), merged(a, merged(b, c)), 1e-6);
    check_close(merged(a, b), merged(b, a), 1e-6);
  }
}

TEST_CASE("the same pieces in the same order give the same bits", "[attend]") {
  auto const it = random_tokens(200, 10, 3);
  auto const in_order = [&] {
    piece all = it.slice(0, 50);
    for (std::size_t first = 50; first < 200; first += 50) all = merged(all, it.slice(first, 50));
    return all;
  };
  check_same(in_order(), in_order());
}

TEST_CASE("scores far apart leave the larger piece as it is", "[attend]") {
  float const largest = std::numeric_limits<float>::max();
  for (auto const& [low, high] : {std::pair{-1000.0f, 1000.0f}, {-largest, largest}, {0.0f, 1e30f}}) {
    piece const small{{low, 5}, {3}}, large{{high, 2}, {7}};
    check_same(merged(small, large), large);
    check_same(merged(large, small), large);
  }
}

TEST_CASE("an empty piece leaves even the sign of a zero", "[attend]") {
  std::vector<float> out = {0}, other = {-0.0f};
  softmax_state state;
  merge_into(state, out, {1, 2}, other);
  CHECK(std::signbit(out[0]));
}

TEST_CASE("equal scores of any size add up", "[attend]") {
  for (float const score :
       {0.0f, 1e30f, -1e30f, std::numeric_limits<float>::max(), std::numeric_limits<float>::lowest()})
    check_same(merged({{score, 2}, {3}}, {{score, 5}, {11}}), {{score, 7}, {14}});
}

TEST_CASE("a piece too small to count does not bring in an infinite output", "[attend]") {
  piece const small{{-1000, 1}, {infinite}}, large{{0, 1}, {7}};
  check_same(merged(small, large), large);
  check_same(merged(large, small), large);
}
