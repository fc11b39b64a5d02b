#include "tools/plan/model_facts.hpp"

#include <catch2/catch.hpp>
#include <map>
#include <string>

using namespace kvquant;

TEST_CASE("the sizes of models come to the parameters that were published", "[plan]") {
  // Elements of all tensors of the published weights; of Gemma 3 from 4b on without the image encoder's.
  std::map<std::string, std::size_t> const published = {
      {"llama-7b", 6'738'415'616},     {"llama-13b", 13'015'864'320},   {"llama-33b", 32'528'943'616},
      {"llama-65b", 65'285'660'672},   {"llama-2-70b", 68'976'648'192}, {"llama-3-8b", 8'030'261'248},
      {"llama-3-70b", 70'553'706'496}, {"mistral-7b", 7'241'732'096},   {"qwen2-0.5b", 494'032'768},
      {"qwen2-1.5b", 1'543'714'304},   {"qwen2-7b", 7'615'616'512},     {"qwen2-72b", 72'706'203'648},
      {"gemma-3-270m", 268'098'176},   {"gemma-3-1b", 999'885'952},     {"gemma-3-4b", 3'880'263'168},
      {"gemma-3-12b", 11'766'034'176}, {"gemma-3-27b", 27'009'346'304}};
  CHECK(plan::known_models().size() == published.size());
  for (auto const& [name, parameters] : published) {
    INFO(name);
    CHECK(plan::find_model(name).parameters() == parameters);
    CHECK_NOTHROW(validate(plan::find_model(name).shape));
  }
}

TEST_CASE("Gemma 3 has a window in five of six layers", "[plan]") {
  model_shape const& shape = plan::find_model("gemma-3-1b").shape;
  CHECK(shape.local.layers.size() == 22);
  CHECK_FALSE(shape.is_local(5));
  CHECK(shape.is_local(25));
}

TEST_CASE("an unknown model is told which ones are known", "[plan]") {
  CHECK_THROWS_WITH(plan::find_model("llama-8b"), Catch::Contains("\"llama-8b\"") && Catch::Contains("llama-3-8b"));
}
