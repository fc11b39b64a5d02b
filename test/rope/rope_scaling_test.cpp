#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "kvquant/rope/rope.hpp"

namespace {

using namespace kvquant;

using wide = long double;
constexpr wide pi = 3.141592653589793238462643383279502884L;

/// What is published is written with the base's own frequencies: theta^(-2i/d).
std::vector<wide> base_frequencies(double theta, int rotary_dim) {
  std::vector<wide> out;
  for (int i = 0; i < rotary_dim / 2; ++i)
    out.push_back(std::pow(static_cast<wide>(theta), -static_cast<wide>(2 * i) / rotary_dim));
  return out;
}

/// "Extending Context Window of Large Language Models via Positional Interpolation" (arXiv 2306.15595).
std::vector<wide> linear_frequencies(rope_config const& config, int rotary_dim) {
  auto out = base_frequencies(config.theta, rotary_dim);
  for (wide& frequency : out) frequency /= config.factor;
  return out;
}

/// Bowen Peng's change of base: b' = b · s^(d / (d − 2)).
std::vector<wide> ntk_frequencies(rope_config const& config, int rotary_dim) {
  std::vector<wide> out;
  wide const base =
      config.theta * std::pow(static_cast<wide>(config.factor), static_cast<wide>(rotary_dim) / (rotary_dim - 2));
  for (int i = 0; i < rotary_dim / 2; ++i) out.push_back(std::pow(base, -static_cast<wide>(2 * i) / rotary_dim));
  return out;
}

/// `apply_scaling` of Meta's llama-models, by wavelength.
std::vector<wide> llama3_frequencies(rope_config const& config, int rotary_dim) {
  auto out = base_frequencies(config.theta, rotary_dim);
  wide const context = config.original_context, low = config.low_frequency_factor, high = config.high_frequency_factor;
  for (wide& frequency : out) {
    wide const wavelength = 2 * pi / frequency;
    if (wavelength < context / high) continue;
    if (wavelength > context / low) {
      frequency /= config.factor;
    } else {
      wide const smooth = (context / wavelength - low) / (high - low);
      frequency = (1 - smooth) * frequency / config.factor + smooth * frequency;
    }
  }
  return out;
}

/// `YaRNScaledRotaryEmbedding` of the authors' code (jquesnelle/yarn): `find_correction_range` and a linear ramp mask.
std::vector<wide> yarn_frequencies(rope_config const& config, int rotary_dim) {
  auto const correction_dim = [&](wide rotations) {
    return rotary_dim * std::log(config.original_context / (rotations * 2 * pi)) /
           (2 * std::log(static_cast<wide>(config.theta)));
  };
  wide const low = std::max(std::floor(correction_dim(config.beta_fast)), wide{0});
  wide high = std::min(std::ceil(correction_dim(config.beta_slow)), static_cast<wide>(rotary_dim - 1));
  if (low == high) high += 0.001L;
  auto out = base_frequencies(config.theta, rotary_dim);
  for (std::size_t i = 0; i < out.size(); ++i) {
    wide const mask = 1 - std::clamp((static_cast<wide>(i) - low) / (high - low), wide{0}, wide{1});
    out[i] = out[i] / config.factor * (1 - mask) + out[i] * mask;
  }
  return out;
}

void check_frequencies(rope_config const& config, int head_dim, std::vector<wide> const& expected) {
  rope const rotation(config, head_dim);
  auto const frequencies = rotation.inverse_frequencies();
  REQUIRE(frequencies.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i, frequencies[i], static_cast<double>(expected[i]));
    CHECK(static_cast<double>(std::abs(frequencies[i] / expected[i] - 1)) < 2e-15);
  }
}

rope_config llama3_config(double factor) {
  return {.theta = 500000, .scaling = rope_scaling::llama3, .factor = factor, .original_context = 8192};
}

rope_config yarn_config(double factor) {
  return {.scaling = rope_scaling::yarn, .factor = factor, .original_context = 4096};
}

std::vector<double> frequencies_of(rope_config const& config, int head_dim) {
  rope const rotation(config, head_dim);
  return {rotation.inverse_frequencies().begin(), rotation.inverse_frequencies().end()};
}

}  // namespace

TEST_CASE("frequencies are powers of theta, of the rotary dimension alone", "[rope]") {
  for (double const theta : {0.5, 1.0, 100.0, 10000.0, 500000.0, 1e6, 1e7})
    for (int const head_dim : {2, 6, 64, 80, 128, 256})
      check_frequencies({.theta = theta}, head_dim, base_frequencies(theta, head_dim));
  check_frequencies({.theta = 10000, .rotary_dim = 32}, 80, base_frequencies(10000, 32));
}

TEST_CASE("linear scaling divides every frequency", "[rope]") {
  for (double const factor : {0.5, 1.0, 2.0, 7.3})
    for (int const head_dim : {4, 64, 128}) {
      rope_config const config{.scaling = rope_scaling::linear, .factor = factor};
      check_frequencies(config, head_dim, linear_frequencies(config, head_dim));
    }
}

TEST_CASE("NTK scaling changes the base so that the slowest pair alone is interpolated", "[rope]") {
  for (double const factor : {1.0, 2.0, 8.0, 3.7})
    for (int const head_dim : {4, 64, 128}) {
      rope_config const config{.scaling = rope_scaling::ntk, .factor = factor};
      check_frequencies(config, head_dim, ntk_frequencies(config, head_dim));
      auto const plain = frequencies_of({}, head_dim), scaled = frequencies_of(config, head_dim);
      CHECK(scaled.front() == 1);
      CHECK(scaled.back() == Approx(plain.back() / factor).epsilon(1e-14));
    }
}

TEST_CASE("Llama 3 scaling agrees with its authors' code", "[rope]") {
  for (double const factor : {1.0, 8.0, 32.0})
    for (int const head_dim : {64, 128}) {
      check_frequencies(llama3_config(factor), head_dim, llama3_frequencies(llama3_config(factor), head_dim));
      auto other = llama3_config(factor);
      other.low_frequency_factor = 0.7;
      other.high_frequency_factor = 11;
      other.original_context = 1000;
      check_frequencies(other, head_dim, llama3_frequencies(other, head_dim));
    }
}

TEST_CASE("Llama 3 scaling keeps the fast pairs, divides the slow ones and blends between", "[rope]") {
  auto const plain = frequencies_of({.theta = 500000}, 128), scaled = frequencies_of(llama3_config(8), 128);
  std::size_t kept = 0, blended = 0, divided = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    double const wavelength = 2 * static_cast<double>(pi) / plain[i], ratio = plain[i] / scaled[i];
    CAPTURE(i, wavelength, ratio);
    if (wavelength < 2048) {
      CHECK(ratio == 1);
      ++kept;
    } else if (wavelength > 8192) {
      CHECK(ratio == 8);
      ++divided;
    } else {
      CHECK((ratio > 1 && ratio < 8));
      ++blended;
    }
  }
  CHECK(kept == 29);  // 2 pi 500000^(i / 64) passes 2048 between i = 28 and 29, 8192 between 34 and 35
  CHECK(blended == 6);
  CHECK(divided == 29);
}

TEST_CASE("YaRN agrees with its authors' code", "[rope]") {
  for (double const factor : {1.0, 4.0, 16.0, 40.0})
    for (int const head_dim : {2, 64, 128}) {
      check_frequencies(yarn_config(factor), head_dim, yarn_frequencies(yarn_config(factor), head_dim));
      auto other = yarn_config(factor);
      other.theta = 1e6;
      other.original_context = 32768;
      other.beta_fast = 20.5;
      other.beta_slow = 2;
      other.rotary_dim = head_dim;
      check_frequencies(other, head_dim + 3, yarn_frequencies(other, head_dim));
    }
}

TEST_CASE("YaRN agrees with its authors' code where the ramp ends beyond the last pair", "[rope]") {
  auto config = yarn_config(4);
  config.original_context = 1'000'000;  // of 64 pairs, ends at 59 and 84
  check_frequencies(config, 128, yarn_frequencies(config, 128));
  config.original_context = 2'000'000'000;  // ends at 40 and 137, cut to 127
  config.beta_fast = 1e6;
  check_frequencies(config, 128, yarn_frequencies(config, 128));
}

TEST_CASE("YaRN keeps the fast pairs, interpolates the slow ones and ramps by index between", "[rope]") {
  // Llama-2: 64 ln(4096 / 2 pi r) / ln(10000) is 20.9 for 32 rotations and 45.02 for one.
  auto const plain = frequencies_of({}, 128), scaled = frequencies_of(yarn_config(16), 128);
  for (std::size_t i = 0; i < 64; ++i) {
    CAPTURE(i);
    double const interpolated = i <= 20 ? 0 : i >= 46 ? 1 : static_cast<double>(i - 20) / 26;
    CHECK(scaled[i] / plain[i] == Approx(1 - interpolated + interpolated / 16).epsilon(1e-14));
  }
}

TEST_CASE("equal ends of YaRN's ramp make a step", "[rope]") {
  rope_config config = yarn_config(4);
  config.original_context = 6;  // less than 2 pi: no pair turns once, and both ends come to lie on the first
  auto const plain = frequencies_of({}, 16), scaled = frequencies_of(config, 16);
  CHECK(scaled[0] == plain[0]);
  for (std::size_t i = 1; i < plain.size(); ++i) CHECK(scaled[i] == plain[i] / 4);
}

TEST_CASE("the attention factor is YaRN's alone", "[rope]") {
  auto const factor_of = [](rope_config const& config) { return rope(config, 64).attention_factor(); };
  CHECK(factor_of(yarn_config(16)) == Approx(0.1 * std::log(16.0) + 1).epsilon(1e-15));
  CHECK(factor_of(yarn_config(1)) == 1);
  CHECK(factor_of(yarn_config(0.5)) == 1);  // a shorter context is not attended to less
  auto given = yarn_config(16);
  given.attention_factor = 0.75;
  CHECK(factor_of(given) == 0.75);
  given.scaling = rope_scaling::linear;
  CHECK(factor_of(given) == 1);
  CHECK(factor_of(llama3_config(8)) == 1);
}

TEST_CASE("the attention factor multiplies every rotated channel and no other", "[rope]") {
  auto config = yarn_config(16);
  config.rotary_dim = 8;
  rope const scaled(config, 12);
  config.attention_factor = 1;
  rope const plain(config, 12);
  std::vector<double> head{1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 11, -12};
  auto expected = head;
  scaled.rotate(std::span(head), 1234);
  plain.rotate(std::span(expected), 1234);
  for (std::size_t i = 0; i < 8; ++i) CHECK(head[i] == Approx(scaled.attention_factor() * expected[i]).epsilon(1e-14));
  for (std::size_t i = 8; i < 12; ++i) CHECK(head[i] == expected[i]);
}

TEST_CASE("frequency factors divide pair by pair, below any scaling", "[rope]") {
  std::vector<float> const factors{1.0f, 1.5f, 4.25f, 32.0f};
  auto expected = base_frequencies(10000, 8);
  for (std::size_t i = 0; i < 4; ++i) expected[i] /= static_cast<wide>(factors[i]);
  check_frequencies({.frequency_factors = factors}, 8, expected);
  for (wide& frequency : expected) frequency /= 3;
  check_frequencies({.scaling = rope_scaling::linear, .factor = 3, .frequency_factors = factors}, 8, expected);
}
