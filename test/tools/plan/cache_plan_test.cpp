#include "tools/plan/cache_plan.hpp"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <vector>

#include "backends/cpu/sealer.hpp"
#include "test/support/hand_made_artifact.hpp"
#include "test/support/small_cache.hpp"
#include "tools/plan/memory_plan.hpp"
#include "tools/plan/paper.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

auto members_of(byte_report const& it) {
  return std::array{it.codes, it.value_ranges, it.slots,      it.padding, it.sinks,
                    it.tail,  it.tables,       it.page_table, it.slack};
}

/// All that a cache and its sequences have allocated. Pages and their counts of owners are the cache's.
template <class Cache>
byte_report allocated(Cache const& cache, std::vector<sequence> const& sequences) {
  byte_report all = cache.bytes();
  for (sequence const& it : sequences) {
    byte_report const own = cache.bytes(it);
    std::size_t pages = 0;
    for (int layer = 0; layer < static_cast<int>(cache.layers()); ++layer) pages += cache.view(it, layer).pages.size();
    all.sinks += own.sinks;
    all.tail += own.tail;
    all.slack += own.slack;
    all.page_table += own.page_table - pages * (sizeof(page_id) + sizeof(std::uint32_t));
  }
  return all;
}

/// What a real cache says, its tokens appended one by one, for rising numbers of them.
template <PackedSpec S>
void check_bytes(char const* format, model_shape const& shape, std::vector<std::size_t> const& contexts,
                 std::size_t sequences = 1, int sinks = 1, int recent_pages = 0) {
  plan::cache_request request{.shape = shape,
                              .format = plan::parse_cache_format(format),
                              .sequences = sequences,
                              .sinks = sinks,
                              .recent_pages = recent_pages};
  token_stream const tokens(shape, contexts.back());
  double const fraction_k = request.format.key.outlier_fraction, fraction_v = request.format.value.outlier_fraction;
  auto const it = hand_made_artifact<S>({shape, fraction_k, fraction_v, sinks, false}, tokens.k, tokens.v);
  for (std::size_t const context : contexts) {
    INFO(format << ", head_dim " << shape.head_dim << ", " << sequences << " x " << context << " tokens, " << sinks
                << " sinks, " << recent_pages << " recent pages");
    request.tokens = context;
    kv_cache<S, cpu::page_layout<S>> cache(it, plan::options_for(request));
    std::vector<sequence> all;
    for (std::size_t i = 0; i < sequences; ++i) {
      all.push_back(cache.open(context));
      for (std::size_t token = 0; token < context; ++token) append_tokens(cache, all.back(), tokens, token, 1);
    }
    CHECK(members_of(plan::bytes_of(request)) == members_of(allocated(cache, all)));
  }
}

model_shape shape_of(int head_dim, int layers = 2, int kv_heads = 2) {
  return {.layers = layers, .q_heads = 2 * kv_heads, .kv_heads = kv_heads, .head_dim = head_dim, .rope = {}};
}

std::vector<std::size_t> const around_pages = {1, 63, 64, 65, 66, 128, 129, 130, 200};

}  // namespace

TEST_CASE("a planned cache has the bytes of a real one, format by format", "[plan]") {
  check_bytes<spec<nuq<2>, nuq<2>>>("nuq2", shape_of(64), around_pages);
  check_bytes<spec<nuq<3>, nuq<3>>>("nuq3-1%", shape_of(64), around_pages);
  check_bytes<spec<nuq<4>, nuq<4>>>("nuq4-2%", shape_of(16), around_pages);
  check_bytes<spec<normal_float<3>, normal_float<3>>>("nf3-1%", shape_of(32), around_pages);
  check_bytes<spec<uniform<5>, uniform<5>>>("int5-1%", shape_of(80), around_pages);
  check_bytes<spec<adaptive, adaptive>>("adaptive2.5", shape_of(64), around_pages);
  check_bytes<spec<passthrough, passthrough>>("f16", shape_of(96), around_pages);
}

TEST_CASE("a planned cache has the bytes of a real one, whatever its heads, sequences and exact tokens", "[plan]") {
  using S = spec<nuq<3>, nuq<3>>;
  check_bytes<S>("nuq3-1%", shape_of(128, 3, 1), {64, 65, 129});
  check_bytes<S>("nuq3-1%", shape_of(256, 1, 1), {64, 65, 129});
  check_bytes<S>("nuq3-1%", shape_of(16, 2, 5), around_pages, 3);
  check_bytes<S>("nuq3-1%", shape_of(16), around_pages, 1, 0);
  check_bytes<S>("nuq3-1%", shape_of(16), {3, 69, 133, 134, 200}, 2, 5, 1);
}

TEST_CASE("a planned cache gives back what lies behind windows", "[plan]") {
  model_shape shape = shape_of(16, 6, 1);
  shape.local = {{0, 1, 2, 3, 4}, 96, shape.rope};
  std::vector<std::size_t> const contexts = {1, 65, 160, 161, 224, 225, 226, 289, 290, 400};
  check_bytes<spec<nuq<3>, nuq<3>>>("nuq3-1%", shape, contexts);
  check_bytes<spec<nuq<3>, nuq<3>>>("nuq3", shape, {225, 226, 600}, 2, 3, 1);
  check_bytes<spec<passthrough, passthrough>>("f16", shape, {226, 900}, 1, 0);
}

TEST_CASE("keys and values of different formats have the bytes of a real cache but for the tables", "[plan]") {
  using S = spec<nuq<4>, nuq<2>>;
  model_shape const shape = shape_of(64);
  token_stream const tokens(shape, 130);
  auto const it = hand_made_artifact<S>({shape, 0.01, 0.02, 1, false}, tokens.k, tokens.v);
  plan::cache_request const request{
      .shape = shape, .format = plan::parse_cache_format("nuq4-1%/nuq2-2%"), .tokens = 130};
  kv_cache<S, cpu::page_layout<S>> cache(it, plan::options_for(request));
  std::vector<sequence> all;
  all.push_back(sequence_of(cache, tokens, 130));
  byte_report planned = plan::bytes_of(request), real = allocated(cache, all);
  CHECK(planned.tables >= real.tables);
  planned.tables = real.tables;
  CHECK(members_of(planned) == members_of(real));
}

TEST_CASE("the paper's figures come from its rule", "[plan]") {
  auto const gib = [](char const* model, double tokens, int bits, double outliers) {
    return plan::bytes_by_the_paper(plan::find_model(model).shape, tokens, bits, outliers) / 0x1p30;
  };
  auto const rounded = [](double x) { return std::round(10 * x) / 10; };
  constexpr double context = 131072;
  CHECK(rounded(gib("llama-7b", context, 16, 0)) == 64.0);
  CHECK(rounded(gib("llama-7b", context, 4, 0)) == 16.0);
  CHECK(rounded(gib("llama-7b", context, 3, 0)) == 12.0);
  CHECK(rounded(gib("llama-7b", context, 2, 0)) == 8.0);
  CHECK(rounded(gib("llama-7b", context, 4, 0.01)) == 17.3);
  CHECK(rounded(gib("llama-7b", context, 3, 0.01)) == 13.3);
  CHECK(rounded(gib("llama-7b", context, 2, 0.01)) == 9.3);
  CHECK(rounded(gib("llama-7b", 1 << 20, 2, 0)) == 64.1);
  CHECK(rounded(gib("llama-7b", 1e7, 2, 0)) == 611.5);
  CHECK(rounded(gib("llama-65b", context, 16, 0)) == 320.0);
  CHECK(rounded(gib("llama-65b", context, 2, 0.01)) == 46.5);
}

TEST_CASE("what docs/plan.md says of LLaMA beside the paper's figures", "[plan]") {
  auto const gib = [](char const* model, std::size_t tokens, char const* format, plan::page_owner owner, int devices) {
    model_shape const shape = plan::shape_of_device(plan::find_model(model).shape, devices);
    auto const bytes =
        plan::bytes_of({.shape = shape, .format = plan::parse_cache_format(format), .tokens = tokens, .owner = owner});
    return std::round(10 * static_cast<double>(bytes.total()) / 0x1p30) / 10;
  };
  constexpr auto cpu = plan::page_owner::cpu, cuda = plan::page_owner::cuda;
  CHECK(gib("llama-7b", 131072, "f16", cuda, 1) == 64.0);
  CHECK(gib("llama-7b", 131072, "nuq3", cuda, 1) == 12.5);
  CHECK(gib("llama-7b", 131072, "nuq3-1%", cuda, 1) == 14.0);
  CHECK(gib("llama-7b", 131072, "nuq3-1%", cpu, 1) == 13.9);
  CHECK(gib("llama-7b", 131072, "adaptive3", cpu, 1) == 12.1);
  CHECK(gib("llama-7b", 131072, "adaptive3", cuda, 1) == 12.1);
  CHECK(gib("llama-7b", 1 << 20, "nuq2", cuda, 1) == 68.0);
  CHECK(gib("llama-7b", 10'000'000, "nuq2", cuda, 8) == 81.1);
  CHECK(gib("llama-65b", 131072, "nuq2-1%", cuda, 1) == 50.2);
}

TEST_CASE("exact tokens that no memory has are refused", "[plan]") {
  plan::cache_request const request{.shape = shape_of(256, 1000, 256),
                                    .format = plan::parse_cache_format("nuq3"),
                                    .tokens = 1,
                                    .sequences = 1 << 16,
                                    .recent_pages = 1 << 20};
  CHECK_THROWS_WITH(plan::bytes_of(request), Catch::Contains("sinks and tails") && Catch::Contains("2^62"));
}
