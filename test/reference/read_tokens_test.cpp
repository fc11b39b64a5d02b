#include "kvquant/cache/read_tokens.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "kvquant/reference/pages.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;

/// Rows from `first` on, [rows, kv_channels].
struct tokens_read {
  float_matrix k, v;

  template <class Cache>
  tokens_read(Cache const& cache, sequence const& of, int layer, std::size_t first, std::size_t count)
      : k(count, cache.kv_channels()), v(count, cache.kv_channels()) {
    read_tokens(cache, of, layer, first, k.view(), v.view());
  }
};

/// Greatest difference from the reference's rows.
double distance(float_matrix const& read, reference::matrix const& expected, std::size_t first) {
  double most = 0;
  for (std::size_t row = 0; row < read.view().rows; ++row)
    for (std::size_t channel = 0; channel < read.view().cols; ++channel) {
      double const there = expected(static_cast<Eigen::Index>(first + row), static_cast<Eigen::Index>(channel));
      most = std::max(most, std::abs(there - double{read.view()(row, channel)}));
    }
  return most;
}

}  // namespace

TEST_CASE("tokens read as the reference reads them, wherever the range begins and ends", "[reference][cache]") {
  small_cache cache(8);
  sequence const of = sequence_of(cache, small_stream(), 5 + 3 * page_tokens + 11);
  for (int layer = 0; layer < 2; ++layer) {
    auto const expected = reference::read_layer(cache, small_artifact<small_cache::spec_type>(), of, layer);
    for (auto const& [first, count] : {std::pair<std::size_t, std::size_t>{0, 208},
                                       {0, 5},
                                       {3, 4},
                                       {5, 64},
                                       {60, 80},
                                       {68, 1},
                                       {69, 64},
                                       {190, 18},
                                       {207, 1},
                                       {208, 0},
                                       {0, 0}}) {
      tokens_read const read(cache, of, layer, first, count);
      CHECK(distance(read.k, expected.k, first) < 1e-4);
      CHECK(distance(read.v, expected.v, first) < 1e-4);
    }
  }
}

TEST_CASE("a re-opened page is read in part, and numbers as they are need no levels", "[reference][cache]") {
  small_cache cache(8);
  sequence of = sequence_of(cache, small_stream(), 5 + 2 * page_tokens);
  cache.truncate(of, 5 + page_tokens + 7);
  append_tokens(cache, of, small_stream(), 5 + page_tokens + 7, 3);
  auto const expected = reference::read_layer(cache, small_artifact<small_cache::spec_type>(), of, 1);
  CHECK(distance(tokens_read(cache, of, 1, 60, 19).k, expected.k, 60) < 1e-4);

  using exact = spec<passthrough, passthrough>;
  row_major_cache<exact> plain(make_passthrough_artifact(artifact_choice{}.shape), {.max_tokens = 512});
  sequence const kept = sequence_of(plain, small_stream(), 100);
  tokens_read const read(plain, kept, 0, 20, 70);
  for (std::size_t row = 0; row < 70; ++row)
    for (std::size_t channel = 0; channel < plain.kv_channels(); ++channel)
      REQUIRE(read.v.view()(row, channel) == round_to_half(small_stream().v[0].view()(20 + row, channel)));
}

TEST_CASE("tokens that are not there, or room of another size, are refused", "[cache]") {
  small_cache cache(4);
  sequence const of = sequence_of(cache, small_stream(), 80);
  auto const refused = [&](std::size_t first, std::size_t count) {
    return error_of([&] { tokens_read(cache, of, 0, first, count); });
  };
  CHECK(refused(80, 1).code == errc::bad_value);
  CHECK(refused(0, 81).code == errc::bad_value);
  CHECK(refused(SIZE_MAX, 2).code == errc::bad_value);
  CHECK_THAT(refused(70, 11).text, says("11 tokens from 70 on, layer 0 has 80"));
  float_matrix room(3, 7);
  auto const other_size = error_of([&] { read_tokens(cache, of, 0, 0, room.view(), room.view()); });
  CHECK(other_size.code == errc::bad_shape);
}
