#include "backends/cuda/appender.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "backends/cuda/page_layout.hpp"
#include "kvquant/core/type_list.hpp"
#include "test/support/cuda_device.hpp"
#include "test/support/hand_made_artifact.hpp"
#include "test/support/small_cache.hpp"
#include "test/support/thrown.hpp"

namespace {

using namespace kvquant;
using namespace kvquant::test;

template <class S>
using device_cache = kv_cache<S, cuda::page_layout<S>>;
/// The same bytes, by the definition.
template <class S>
using host_cache = kv_cache<S, cuda::fragment_layout<S>>;

using S3 = spec<nuq<3>, nuq<3>>;

artifact_choice choice_of(int head_dim, double outliers, rope_pairing pairing = rope_pairing::half_split) {
  return {.shape = {.layers = 1,
                    .q_heads = 2,
                    .kv_heads = 2,
                    .head_dim = head_dim,
                    .rope = {.pairing = pairing, .rotary_dim = head_dim / 2 / 4 * 4}},
          .fraction_k = outliers,
          .fraction_v = outliers,
          .sinks = 3};
}

/// What a sequence holds after it has grown, was cut inside a page and grew on, was shared and cut again.
template <class Cache>
std::vector<std::vector<layer_contents>> history(Cache& cache, token_stream const& one, token_stream const& other) {
  std::vector<std::vector<layer_contents>> seen;
  sequence it = cache.open();
  for (std::size_t const end : {2u, 5u, 60u, 67u, 260u, 300u})
    append_tokens(cache, it, one, it.tokens(), end - it.tokens());
  seen.push_back(contents_of(cache, it));
  cache.truncate(it, 150);
  append_tokens(cache, it, other, 0, 20);
  seen.push_back(contents_of(cache, it));
  append_tokens(cache, it, other, 20, 100);
  seen.push_back(contents_of(cache, it));
  cache.truncate(it, 90);
  sequence fork = cache.fork(it);
  append_tokens(cache, fork, one, 90, 60);
  append_tokens(cache, it, other, 0, 150);
  seen.push_back(contents_of(cache, fork));
  seen.push_back(contents_of(cache, it));
  return seen;
}

/// Of channels with widths of their own: from other tokens, so that some of the cache's lie beyond what was seen.
template <class S>
artifact<S> artifact_of(artifact_choice const& choice, token_stream const& tokens, token_stream const& other) {
  if constexpr (is_by_channel<typename S::key_format>)
    return hand_made_artifact<S>({choice.shape, choice.fraction_k, choice.fraction_v, choice.sinks}, other.k, other.v);
  else
    return artifact_for<S>(tokens, choice);
}

template <class S>
void check_history(artifact_choice const& choice, int recent_pages) {
  CAPTURE(S::name(), choice.shape.head_dim, choice.fraction_k, recent_pages);
  token_stream const one(choice.shape, 300), other(choice.shape, 150, 7);
  auto const it = artifact_of<S>(choice, one, other);
  cache_options const options{.max_tokens = 1024, .recent_pages = recent_pages};
  device_cache<S> device(it, options);
  host_cache<S> host(it, options);
  CHECK((history(device, one, other) == history(host, one, other)));
  clamp_counts const found = device.clamps(), expected = host.clamps();
  CHECK(found.keys == expected.keys);
  CHECK(found.values == expected.values);
  CHECK(found.clamped_keys == expected.clamped_keys);
  CHECK(found.clamped_values == expected.clamped_values);
  if constexpr (is_by_channel<typename S::key_format>) CHECK(found.clamped_values > 0);
}

/// Memory of the device with numbers in it.
template <class T>
cuda::device_array<T> on_device(std::vector<T> const& values) {
  return cuda::device_array<T>(std::span<T const>(values));
}

bfloat16 to_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<std::uint16_t>(bits >> 16)};
}

}  // namespace

TEST_CASE("the device seals the bytes of the definition", "[cuda]") {
  skip_without_cuda_device();
  for_each_type(type_list<spec<nuq<2>, nuq<2>>, S3, spec<normal_float<4>, nuq<4>>, spec<adaptive, adaptive>,
                          spec<passthrough, passthrough>>{},
                []<class S>(std::type_identity<S>) {
                  for (int const head_dim : {64, 80})
                    check_history<S>(choice_of(head_dim, 0.02), head_dim == 80 ? 1 : 0);
                });
  check_history<S3>(choice_of(256, 0.01, rope_pairing::interleaved), 0);
  check_history<S3>(choice_of(96, 0), 0);
  check_history<spec<adaptive, adaptive>>(choice_of(128, 0), 0);
}

TEST_CASE("ties, zeros of both signs and the largest numbers are sealed as the definition does", "[cuda]") {
  skip_without_cuda_device();
  auto const choice = choice_of(64, 0.05);
  auto const it = artifact_for<S3>(token_stream(choice.shape), choice);
  for (auto const& numbers :
       std::vector<std::vector<float>>{{1, -1, 0}, {0, -0.0f}, {0, -0.0f, 0x1p-24f, 65504, -65504, 0.3f}, {3}}) {
    std::mt19937_64 random(numbers.size());
    token_stream tokens(choice.shape, 150);
    for (auto* const side : {&tokens.k[0], &tokens.v[0]})
      for (float& x : side->values) x = numbers[random() % numbers.size()];
    device_cache<S3> device(it, {.max_tokens = 256});
    host_cache<S3> host(it, {.max_tokens = 256});
    CHECK((contents_of(device, sequence_of(device, tokens, 150)) == contents_of(host, sequence_of(host, tokens, 150))));
  }
}

TEST_CASE("tokens may lie on the device, of any type and with a stride", "[cuda]") {
  skip_without_cuda_device();
  auto const choice = choice_of(64, 0.02);
  token_stream const tokens(choice.shape, 140);
  auto const it = artifact_for<S3>(tokens, choice);
  device_cache<S3> cache(it, {.max_tokens = 512});
  std::size_t const cols = cache.kv_channels(), stride = cols + 8;
  auto const check_type = [&]<class T>(std::type_identity<T>, auto&& of) {
    std::vector<T> k(140 * stride), v(k);
    for (std::size_t row = 0; row < 140; ++row)
      for (std::size_t channel = 0; channel < cols; ++channel) {
        k[row * stride + channel] = of(tokens.k[0].view()(row, channel));
        v[row * stride + channel] = of(tokens.v[0].view()(row, channel));
      }
    auto const rows = [&](T const* data) { return view2d<T const>(data, 140, cols, stride); };
    sequence from_host = cache.open(), from_device = cache.open();
    cache.append(from_host, 0, rows(k.data()), rows(v.data()));
    auto const device_k = on_device(k), device_v = on_device(v);
    cache.append(from_device, 0, rows(device_k.data()), rows(device_v.data()));
    cache.wait();
    CHECK((contents_of(cache, from_device) == contents_of(cache, from_host)));
    auto const mixed = error_of([&] { cache.append(from_host, 0, rows(device_k.data()), rows(v.data())); });
    CHECK(mixed.code == errc::bad_value);
  };
  check_type(std::type_identity<float>{}, [](float x) { return x; });
  check_type(std::type_identity<half>{}, [](float x) { return to_half(x); });
  check_type(std::type_identity<bfloat16>{}, to_bfloat16);
}

TEST_CASE("what binary16 cannot hold is refused, on the device when it is waited for", "[cuda]") {
  skip_without_cuda_device();
  auto const choice = choice_of(64, 0.02);
  token_stream const tokens(choice.shape);
  device_cache<S3> cache(artifact_for<S3>(tokens, choice), {.max_tokens = 512});
  for (float const bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), 70000.0f}) {
    std::vector<float> k(10 * cache.kv_channels()), v(k);
    v[7 * cache.kv_channels() + 5] = bad;
    auto const rows = [&](float const* data) { return view2d<float const>(data, 10, cache.kv_channels()); };
    sequence it = cache.open();
    auto const at_once = error_of([&] { cache.append(it, 0, rows(k.data()), rows(v.data())); });
    CHECK(at_once.code == errc::bad_value);
    CHECK(it.tokens() == 0);
    auto const device_k = on_device(k), device_v = on_device(v);
    cache.append(it, 0, rows(device_k.data()), rows(device_v.data()));
    auto const later = error_of([&] { cache.wait(); });
    CHECK(later.code == errc::bad_value);
    CHECK_THAT(later.text, Catch::Matchers::Contains("token 7"));
    cache.wait();  // said once
  }
}

TEST_CASE("on a stream of the caller's, appending only asks", "[cuda]") {
  skip_without_cuda_device();
  auto const choice = choice_of(64, 0.02);
  token_stream const tokens(choice.shape, 200);
  auto const it = artifact_for<S3>(tokens, choice);
  cuda::stream const queue;
  device_cache<S3> asking(it, {.max_tokens = 512, .queue = queue.get()}), waiting(it, {.max_tokens = 512});
  sequence const a = sequence_of(asking, tokens, 200), b = sequence_of(waiting, tokens, 200);
  asking.wait();
  CHECK((contents_of(asking, a) == contents_of(waiting, b)));
}
