#include "tools/plan/memory_plan.hpp"

#include <catch2/catch.hpp>

#include "tools/plan/device.hpp"
#include "tools/plan/quantity.hpp"

using namespace kvquant;

namespace {

plan::memory_request request_of(char const* model, char const* format, std::size_t tokens) {
  plan::memory_request request{
      .model = plan::find_model(model), .format = plan::parse_cache_format(format), .tokens = tokens};
  request.weights = plan::weights_of(request.model, 16);
  return request;
}

}  // namespace

TEST_CASE("the longest context fits and the next one does not", "[plan]") {
  for (char const* const model : {"llama-7b", "llama-3-8b", "gemma-3-4b"})
    for (char const* const format : {"f16", "nuq3-1%", "adaptive2"}) {
      INFO(model << ", " << format);
      auto request = request_of(model, format, 1);
      std::size_t const memory = std::size_t{24} << 30;
      request.tokens = plan::longest_context(request, memory);
      CHECK(request.tokens > 1000);
      CHECK(plan::plan_memory(request).total() <= memory);
      ++request.tokens;
      CHECK(plan::plan_memory(request).total() > memory);
    }
}

TEST_CASE("no context fits where weights do not, and none is longer than pages have numbers", "[plan]") {
  auto const request = request_of("llama-7b", "nuq2", 1);
  CHECK(plan::longest_context(request, std::size_t{1} << 30) == 0);
  std::size_t const longest = plan::longest_context(request, std::size_t{1} << 62);
  CHECK(longest > std::size_t{8'000'000'000});
  CHECK(longest < plan::most_tokens);
}

TEST_CASE("devices share KV heads and weights", "[plan]") {
  auto request = request_of("llama-3-8b", "nuq3-1%", 10000);
  auto const alone = plan::plan_memory(request);
  request.devices = 8;
  auto const shared = plan::plan_memory(request);
  CHECK(shared.cache.codes == alone.cache.codes / 8);
  CHECK(shared.weights == (alone.weights + 7) / 8);
  CHECK(shared.activations < alone.activations);
  request.devices = 3;  // 3, 3 and 2 heads
  CHECK(plan::plan_memory(request).cache.codes == alone.cache.codes / 8 * 3);
  request.devices = 16;  // two have the same head
  CHECK(plan::plan_memory(request).cache.codes == alone.cache.codes / 8);
}

TEST_CASE("a step reads weights once and every sequence's tokens", "[plan]") {
  auto request = request_of("llama-3-8b", "f16", 65 + 64);  // a sink, two pages
  std::size_t const token = 2 * 32 * 8 * 128 * 2;           // keys and values
  std::size_t const weights = 2 * (8'030'261'248 - 128256u * 4096);
  CHECK(plan::plan_memory(request).read_by_a_step == weights + 129 * token + 2 * 32 * sizeof(page_id));
  request.sequences = 3;
  CHECK(plan::plan_memory(request).read_by_a_step == weights + 3 * (129 * token + 2 * 32 * sizeof(page_id)));
  auto tied = request_of("gemma-3-1b", "f16", 10000);
  auto const longer = request_of("gemma-3-1b", "f16", 20000);
  std::size_t const more = plan::plan_memory(longer).read_by_a_step - plan::plan_memory(tied).read_by_a_step;
  CHECK(more < 4 * 10100 * 2 * 256 * 2);  // of the 4 layers that see all
  CHECK(more > 4 * 9900 * 2 * 256 * 2);
}

TEST_CASE("an unknown device is told which ones are known", "[plan]") {
  CHECK_THROWS_WITH(plan::find_device("a100"), Catch::Contains("\"a100\"") && Catch::Contains("a100-80g"));
  CHECK(plan::find_device("a100-80g").memory_bytes == std::size_t{80} << 30);
  CHECK(plan::find_device(plan::host_name).memory_bytes > std::size_t{1} << 28);
}
