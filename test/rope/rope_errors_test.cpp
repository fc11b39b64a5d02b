#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/rope/rope.hpp"

namespace {

using namespace kvquant;

constexpr double infinity = std::numeric_limits<double>::infinity(),
                 not_a_number = std::numeric_limits<double>::quiet_NaN();

template <class F>
void check_error(F&& f, errc code, std::string const& what) {
  try {
    f();
    FAIL("nothing thrown, expected " << what);
  } catch (error const& caught) {
    CHECK(caught.code == code);
    CHECK_THAT(caught.what(), Catch::Contains(what));
  }
}

void check_config_error(rope_config const& config, errc code, std::string const& what, int head_dim = 8) {
  check_error([&] { rope(config, head_dim); }, code, what);
}

rope_config with_scaling(rope_scaling scaling) { return {.scaling = scaling, .factor = 4, .original_context = 4096}; }

/// A config like `base` but for one member.
template <class T>
rope_config with(rope_config base, T rope_config::*member, T value) {
  base.*member = value;
  return base;
}

void check_positive(rope_config const& base, double rope_config::*member, std::string const& name,
                    std::vector<double> const& bad = {0.0, -1.0, not_a_number, infinity, -infinity}) {
  for (double const value : bad)
    check_config_error(with(base, member, value), errc::bad_value,
                       text("rope: ", name, " is ", value, ", expected a finite number above 0"));
}

}  // namespace

TEST_CASE("a head has channels, rotated or not", "[rope]") {
  for (int const head_dim : {0, -64}) {
    std::string const what = text("rope: head_dim is ", head_dim, ", expected 1 or more");
    check_config_error({}, errc::bad_shape, what, head_dim);
    check_config_error({.enabled = false}, errc::bad_shape, what, head_dim);
  }
  CHECK_NOTHROW(rope({.enabled = false}, 1));
}

TEST_CASE("the rotary dimension is even and within the head", "[rope]") {
  for (int const rotary_dim : {-2, 1, 3, 7, 10})
    check_config_error({.rotary_dim = rotary_dim}, errc::bad_shape,
                       text("rope: rotary_dim is ", rotary_dim, ", expected an even number from 2 to head_dim, 8"));
  check_config_error({}, errc::bad_shape, "rotary_dim is 7", 7);
  CHECK_NOTHROW(rope({.rotary_dim = 8}, 8));
  CHECK_NOTHROW(rope({.rotary_dim = 2}, 8));
}

TEST_CASE("numbers of a config are finite and positive where they are used", "[rope]") {
  auto const llama3 = with_scaling(rope_scaling::llama3), yarn = with_scaling(rope_scaling::yarn);
  check_positive({}, &rope_config::theta, "theta");
  for (auto const scaling : {rope_scaling::linear, rope_scaling::ntk, rope_scaling::llama3, rope_scaling::yarn})
    check_positive(with_scaling(scaling), &rope_config::factor, "factor");
  check_positive(llama3, &rope_config::low_frequency_factor, "low_frequency_factor");
  check_positive(llama3, &rope_config::high_frequency_factor, "high_frequency_factor");
  check_positive(yarn, &rope_config::beta_fast, "beta_fast");
  check_positive(yarn, &rope_config::beta_slow, "beta_slow");
  check_positive(yarn, &rope_config::attention_factor, "attention_factor", {-1.0, not_a_number, infinity});
  for (auto const& base : {llama3, yarn})
    for (int const context : {0, -4096})
      check_config_error(with(base, &rope_config::original_context, context), errc::bad_value,
                         text("rope: original_context is ", context, ", expected a finite number above 0"));
}

TEST_CASE("numbers of a scaling that is not used are not looked at", "[rope]") {
  CHECK_NOTHROW(rope({.factor = -1, .original_context = -1, .low_frequency_factor = not_a_number, .beta_fast = 0}, 8));
  CHECK_NOTHROW(rope({.scaling = rope_scaling::linear, .factor = 2, .attention_factor = not_a_number}, 8));
}

TEST_CASE("the two ends of a blend are in order", "[rope]") {
  auto llama3 = with_scaling(rope_scaling::llama3);
  llama3.low_frequency_factor = 4;
  check_config_error(llama3, errc::bad_value,
                     "rope: low_frequency_factor is 4, expected less than high_frequency_factor, 4");
  llama3.low_frequency_factor = 5;
  check_config_error(llama3, errc::bad_value, "low_frequency_factor is 5");
  auto yarn = with_scaling(rope_scaling::yarn);
  yarn.beta_slow = 33;
  check_config_error(yarn, errc::bad_value, "rope: beta_slow is 33, expected at most beta_fast, 32");
  yarn.beta_slow = 32;
  CHECK_NOTHROW(rope(yarn, 8));
}

TEST_CASE("scalings refuse what their formulas cannot take", "[rope]") {
  check_config_error(with_scaling(rope_scaling::ntk), errc::bad_shape, "ntk scaling needs a rotary_dim above 2", 2);
  for (double const theta : {1.0, 0.5})
    check_config_error(with(with_scaling(rope_scaling::yarn), &rope_config::theta, theta), errc::bad_value,
                       text("rope: theta is ", theta, ", yarn expects more than 1"));
}

TEST_CASE("frequency factors are one a pair, finite and positive", "[rope]") {
  for (std::size_t const count : {1u, 3u, 5u, 8u})
    check_config_error({.frequency_factors = std::vector<float>(count, 1.0f)}, errc::bad_shape,
                       text("rope: ", count, " frequency_factors, expected rotary_dim / 2 = 4 or none"));
  for (float const bad : {0.0f, -1.0f, static_cast<float>(not_a_number), static_cast<float>(infinity)})
    check_config_error({.frequency_factors = {1, 1, bad, 1}}, errc::bad_value,
                       text("rope: a frequency factor is ", bad, ", expected a finite number above 0"));
  CHECK_NOTHROW(rope({.rotary_dim = 2, .frequency_factors = {2.0f}}, 8));
}

TEST_CASE("a pair turns at most once a token, and turns", "[rope]") {
  check_config_error({.frequency_factors = {0.1f, 1, 1, 1}}, errc::bad_value,
                     "rope: an inverse frequency is 10, expected above 0 and at most 2 pi");
  check_config_error({.scaling = rope_scaling::linear, .factor = 0.125}, errc::bad_value, "inverse frequency is 8");
  // 1e308^(-3/4) / 1e300 is no number of double.
  check_config_error({.theta = 1e308, .scaling = rope_scaling::linear, .factor = 1e300}, errc::bad_value,
                     "inverse frequency is 0");
  // The base itself overflows.
  check_config_error({.theta = 1e308, .scaling = rope_scaling::ntk, .factor = 1e10}, errc::bad_value,
                     "inverse frequency is 0");
}

TEST_CASE("numbers that name no pairing and no scaling are refused", "[rope]") {
  check_config_error({.pairing = static_cast<rope_pairing>(7)}, errc::unsupported, "rope: unknown pairing, number 7");
  check_config_error({.scaling = static_cast<rope_scaling>(9)}, errc::unsupported, "rope: unknown scaling, number 9");
}

TEST_CASE("positions end at 2^34 on both sides", "[rope]") {
  constexpr std::int64_t last = rope::max_position;
  STATIC_REQUIRE(last == 17'179'869'184);
  rope const rotation({}, 8), none({.enabled = false}, 8);
  for (rope const* it : {&rotation, &none}) {
    CHECK_NOTHROW(it->angle_table(last, 1));
    CHECK_NOTHROW(it->angle_table(-last, 2));
    CHECK_NOTHROW(it->angle_table(last - 2, 3));
    check_error([&] { it->angle_table(last - 2, 4); }, errc::bad_value,
                "rope: 4 positions from 17179869182, expected them within ±17179869184");
    for (std::int64_t const first :
         {last + 1, -last - 1, std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()})
      check_error([&] { it->angle_table<double>(first, 1); }, errc::bad_value, text("1 positions from ", first));
    check_error([&] { it->angle_table(0, std::numeric_limits<std::size_t>::max()); }, errc::bad_value,
                "positions from 0");
  }
  check_error([&] { none.angle_table(-last, 2 * static_cast<std::size_t>(last) + 2); }, errc::bad_value, "positions");
}

TEST_CASE("heads and angles of another shape are refused, and nothing is turned", "[rope]") {
  rope const rotation({}, 8), narrow({.rotary_dim = 4}, 8);
  std::vector<float> head{1, 2, 3, 4, 5, 6, 7, 8, 9};
  auto const before = head;
  auto const span = std::span(head);
  for (std::size_t const channels : {0u, 7u, 9u}) {
    std::string const what =
        text("rope: a head of ", channels, " channels, 4 cosines and 4 sines, expected 8 channels and 4 of each");
    check_error([&] { rotation.rotate(span.first(channels), 5); }, errc::bad_shape, what);
    check_error([&] { rotation.rotate_back(span.first(channels), 5); }, errc::bad_shape, what);
  }
  auto const other = narrow.angle_table<float>(5, 1);
  check_error([&] { rotation.rotate(span.first(8), other[0]); }, errc::bad_shape,
              "a head of 8 channels, 2 cosines and 2 sines, expected 8 channels and 4 of each");
  auto const fitting = rotation.angle_table<float>(5, 1);
  check_error(
      [&] {
        rotation.rotate_back(span.first(8), {fitting.cos(), other.sin()});
      },
      errc::bad_shape, "4 cosines and 2 sines");
  check_error(
      [&] {
        rotation.rotate_back(span.first(8), {{}, fitting.sin()});
      },
      errc::bad_shape, "0 cosines and 4 sines");
  check_error([&] { rotation.rotate(span.first(8), rope::max_position + 1); }, errc::bad_value, "positions");
  CHECK(head == before);
}
