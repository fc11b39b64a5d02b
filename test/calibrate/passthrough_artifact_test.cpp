#include "kvquant/calibrate/passthrough_artifact.hpp"

#include <catch2/catch.hpp>

#include "kvquant/calibrate/artifact_io.hpp"
#include "test/support/containers.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

constexpr int layers = 3, channels = 48;
model_shape const passthrough_shape{.layers = layers, .q_heads = 9, .kv_heads = 3, .head_dim = 16, .rope = {}};

}  // namespace

TEST_CASE("the artifact of a cache that does not quantize needs the model's shape alone", "[calibrate]") {
  auto it = make_passthrough_artifact(passthrough_shape);
  CHECK(it.info.spec == "f16");
  CHECK(it.info.sinks == 0);
  CHECK(it.layers.size() == layers);
  for (layer_artifact const& layer : it.layers) {
    CHECK(layer.key_ranges.size() == channels);
    CHECK(layer.key_sensitivity.size() == channels);
    CHECK(layer.value_sensitivity.size() == channels);
  }
  temporary_folder const folder;
  save(it, folder / "f16.kvq");
  CHECK(load_artifact<passthrough_spec>(folder / "f16.kvq").info.hash == it.info.hash);
}

TEST_CASE("no artifact is made of a shape that cannot be", "[calibrate]") {
  CHECK(error_of([] { make_passthrough_artifact({}); }).code == errc::bad_shape);
}

TEST_CASE("its keys and values are binary16 as they are, and none is an outlier", "[calibrate]") {
  auto it = make_passthrough_artifact(passthrough_shape);
  it.info.outlier_fraction_k = it.info.outlier_fraction_v = 0.1;
  auto const keys = it.keys(0);
  auto const values = it.values(0);
  std::vector<float> token(channels, 0.25f);
  token[5] = -0.0f;
  token[6] = 60000;
  token[7] = 1.0f + 0x1p-12f;
  std::vector<std::uint16_t> codes(channels);
  std::size_t outliers = 0;
  auto const count = [&](outlier) { ++outliers; };
  auto const check_codes = [&] {
    for (std::size_t channel = 0; channel < channels; ++channel) CHECK(codes[channel] == to_half(token[channel]).bits);
  };
  keys.quantize(token, codes, count);
  check_codes();
  CHECK(keys.decode(6, codes[6]) == to_float(to_half(60000)));
  auto selector = values.make_selector();
  value_range const range = values.quantize(token, codes, selector, count);
  check_codes();
  CHECK(values.decode(affine_of(range), codes[6]) == to_float(to_half(60000)));
  CHECK(outliers == 0);
}
