/// \file
/// Version 1 of the artifact format, as one file has it. Whoever changes what this file reads or is written as changes
/// the format: then the version rises and a golden file of the new version comes beside this one.

#include <catch2/catch.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "kvquant/calibrate/artifact_io.hpp"
#include "test/support/calibrated.hpp"
#include "test/support/containers.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

using nuq3_spec = spec<nuq<3>, nuq<3>>;

std::string golden_path() { return std::string(KVQUANT_TEST_DATA) + "/calibrate/golden/nuq3.kvq"; }

/// Levels that rise from −1 to 1, unevenly by `bend`, a multiple of 2^-6: exact in binary32, Q-Norm applied too.
codebook golden_book(float bend, double objective) {
  codebook book;
  for (int i = 0; i < 8; ++i) {
    float const even = -1.0f + 0.25f * static_cast<float>(i);
    book.levels.push_back(i == 7 ? 1.0f : even + bend * static_cast<float>(i));
    book.decode_levels.push_back(book.levels.back() * 1.0625f - 0.03125f);
  }
  book.norm = {1.0625, -0.03125};
  book.objective = objective;
  book.mass = 1234.5678;
  book.outlier_rate = 0.01;
  return book;
}

/// Built from exact numbers alone: what a fit gives differs in last bits between compilers and standard libraries.
artifact<nuq3_spec> golden_artifact() {
  artifact<nuq3_spec> it;
  it.info = {.spec = "nuq3",
             .shape = small_shape(),
             .outlier_fraction_k = 0.02,
             .outlier_fraction_v = 0.07,
             .sinks = 1,
             .keys = key_space::pre_rope,
             .weights = fit_weights::fisher,
             .q_norm = true,
             .origin = small_fit().origin,
             .hash = {}};
  it.info.shape.rope.scaling = rope_scaling::llama3;
  it.info.shape.rope.theta = 500000;
  it.info.shape.rope.factor = 8;
  it.info.shape.rope.original_context = 8192;
  it.info.shape.rope.frequency_factors = {1, 1, 1, 1.5f, 2.25f, 8, 8, 8};
  it.info.origin.library_version = "0.1.0";
  for (int layer = 0; layer < 2; ++layer) {
    layer_artifact& made = it.layers.emplace_back();
    for (int channel = 0; channel < 32; ++channel) {
      auto const at = static_cast<float>(channel + 32 * layer);
      made.key_ranges.push_back(make_range(-0.5f - 0.125f * at, 0.25f * at));
      made.key_sensitivity.push_back(0.0625f * at);
      made.value_sensitivity.push_back(64 - at);
    }
    auto const bend = static_cast<float>(layer) / 64;
    made.key = golden_book(bend, 0.1 + layer);
    made.value = golden_book(bend + 1.0f / 64, 1e-7);
  }
  return it;
}

}  // namespace

TEST_CASE("the golden artifact reads as what it was made of", "[calibrate]") {
  auto const it = load_artifact<nuq3_spec>(golden_path());
  CHECK(it.info.hash == "b541f6906d5b534e");
  CHECK(it.info.spec == "nuq3");
  CHECK(it.info.shape.layers == 2);
  CHECK(it.info.shape.kv_channels() == 32);
  CHECK(it.info.shape.rope.scaling == rope_scaling::llama3);
  CHECK(it.info.shape.rope.frequency_factors == std::vector<float>{1, 1, 1, 1.5f, 2.25f, 8, 8, 8});
  CHECK(it.info.outlier_fraction_v == 0.07);
  CHECK(it.info.weights == fit_weights::fisher);
  CHECK(it.info.q_norm);
  CHECK(it.info.origin.model_name == "a small model");
  CHECK(it.info.origin.library_version == "0.1.0");
  REQUIRE(it.layers.size() == 2);
  CHECK(it.layers[1].key_ranges[3].low() == -4.875f);
  CHECK(it.layers[1].key_ranges[3].high() == 8.75f);
  CHECK(it.layers[0].key.levels == std::vector<float>{-1, -0.75f, -0.5f, -0.25f, 0, 0.25f, 0.5f, 1});
  CHECK(it.layers[1].value.levels[2] == -0.4375f);
  CHECK(it.layers[1].value.decode_levels[2] == -0.49609375f);
  CHECK(it.layers[1].key.norm.scale == 1.0625);
  CHECK(it.layers[1].key.norm.offset == -0.03125);
  CHECK(it.layers[1].key.objective == 1.1);
  CHECK(it.layers[1].value.objective == 1e-7);
  CHECK(it.layers[0].key.mass == 1234.5678);
  CHECK(it.layers[0].value.outlier_rate == 0.01);
  CHECK(it.layers[1].key_sensitivity[31] == 3.9375f);
  CHECK(it.layers[1].value_sensitivity[31] == 1);
}

TEST_CASE("what was read of the golden artifact is written as the same bytes", "[calibrate]") {
  bytes const file = read_bytes(golden_path());
  CHECK(to_bytes(load_artifact<nuq3_spec>(golden_path())) == file);
  CHECK(to_bytes(golden_artifact()) == file);
}

TEST_CASE("the tensors of the golden artifact lie where version 1 has them", "[calibrate]") {
  container_parts parts(read_bytes(golden_path()));
  CHECK(parts.metadata("version") == "1");
  CHECK(parts.header.size() == 8);  // seven tensors and the metadata
  auto const check = [&](std::string const& name, std::string const& dtype, std::size_t width, std::size_t begin) {
    auto const& entry = parts.header.at(name);
    CHECK(entry.at("dtype") == dtype);
    CHECK(entry.at("shape") == nlohmann::json{2, width});
    CHECK(entry.at("data_offsets").at(0) == begin);
  };
  check("key.ranges", "F16", 64, 0);
  check("key.levels", "F32", 8, 256);
  check("key.decode_levels", "F32", 8, 320);
  check("key.sensitivity", "F32", 32, 384);
  check("value.levels", "F32", 8, 640);
  check("value.decode_levels", "F32", 8, 704);
  check("value.sensitivity", "F32", 32, 768);
  CHECK(parts.data.size() == 1024);
  CHECK(*reinterpret_cast<std::uint8_t const*>(parts.tensor("key.ranges") + 1) == 0xb8);  // −1/2 is b800
}
