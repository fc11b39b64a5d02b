#include "runtime/simulation/artifact_simulator.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/reference/quantize.hpp"
#include "test/support/calibrated.hpp"
#include "test/support/thrown.hpp"

namespace kvquant::runtime {
namespace {

using test::float_matrix;
using test::random_keys;

/// A file name of its own, removed at the end.
class scratch_file {
 public:
  scratch_file()
      : path_(std::filesystem::temp_directory_path() /
              ("kvquant_simulator_" + std::to_string(std::random_device{}()) + ".kvq")) {}
  ~scratch_file() { std::filesystem::remove(path_); }
  scratch_file(scratch_file const&) = delete;
  scratch_file& operator=(scratch_file const&) = delete;
  operator std::filesystem::path const&() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// The model that `small_fit` is for.
model_config small_model() {
  model_config config;
  config.name = "this model";
  config.layers = 2;
  config.q_heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  return config;
}
std::string const small_hash = test::small_fit().origin.model_hash;

template <Spec S>
artifact<S> small_artifact(key_space keys, int sinks, bool q_norm = false) {
  auto calibration = test::small_options();
  calibration.sinks = sinks;
  auto options = test::small_fit();
  options.keys = keys;
  options.q_norm = q_norm;
  return fit<S>(test::small_calibration(calibration), options);
}

reference::levels levels_of(codebook const& book) {
  auto const widen = [](std::vector<float> const& x) {
    return Eigen::Map<Eigen::VectorXf const>(x.data(), static_cast<Eigen::Index>(x.size())).cast<double>().eval();
  };
  return {widen(book.levels), widen(book.decode_levels)};
}

/// Found as the reference has it: to single precision, and to one unit of the binary16 residual of an outlier.
void check_equal(float_matrix const& found, reference::matrix const& exact, reference::coded_matrix const& coded,
                 int sinks) {
  reference::matrix const expected = reference::with_sinks(exact, coded, sinks);
  reference::matrix tolerance =
      reference::matrix::Constant(exact.rows(), exact.cols(), 2e-6 * expected.cwiseAbs().maxCoeff());
  for (auto const& it : coded.outliers) tolerance(it.token, it.channel) += 0x1p-10 * std::abs(it.residual);
  reference::matrix const difference = reference::to_matrix(found) - expected;
  CHECK((difference.cwiseAbs() - tolerance).maxCoeff() < 0);
}

TEMPLATE_TEST_CASE("an artifact rounds keys and values as the reference does, and counts what that takes", "",
                   (spec<nuq<2>, nuq<2>>), (spec<nuq<3>, nuq<3>>), (spec<nuq<4>, nuq<4>>)) {
  using S = TestType;
  auto const space = GENERATE(key_space::pre_rope, key_space::post_rope);
  int const sinks = GENERATE(0, 1, 5);
  std::size_t const tokens = GENERATE(as<std::size_t>(), 1, 3, 64, 65, 200);  // blocks of 64 are rounded in parallel
  bool const q_norm = S::key_format::bits == 2;
  auto saved = small_artifact<S>(space, sinks, q_norm);
  scratch_file const file;
  save(saved, file);
  cpu::thread_pool pool(2);
  auto const cache = simulate_artifact(file, small_model(), small_hash, pool);

  std::size_t const channels = 32;
  double bits = 0;
  for (int layer = 0; layer < 2; ++layer) {
    auto const& from = saved.layers[static_cast<std::size_t>(layer)];
    auto const seed = 50 + static_cast<unsigned>(layer);
    auto const k = random_keys(tokens, channels, seed), v = random_keys(tokens, channels, seed + 10);
    auto const k_exact = reference::to_matrix(k), v_exact = reference::to_matrix(v);
    auto const k_coded = reference::quantize_keys(k_exact, from.key_ranges, levels_of(from.key), true);
    auto const v_coded = reference::quantize_values(v_exact, saved.info.outlier_fraction_v, levels_of(from.value));

    auto before = k, after = k, values = v;
    cache->keys_pre_rope(layer, before.view());
    cache->keys_post_rope(layer, after.view());
    cache->values(layer, values.view());
    INFO(S::name() << ", layer " << layer << ", " << sinks << " sinks, " << tokens << " tokens");
    check_equal(space == key_space::pre_rope ? before : after, k_exact, k_coded, sinks);
    CHECK((space == key_space::pre_rope ? after : before).values == k.values);
    check_equal(values, v_exact, v_coded, sinks);

    std::size_t const exact = std::min(tokens, static_cast<std::size_t>(sinks)), coded = tokens - exact;
    auto const is_coded = [&](auto const& it) { return it.token >= sinks; };
    auto const k_outliers = std::count_if(k_coded.outliers.begin(), k_coded.outliers.end(), is_coded);
    bits += static_cast<double>(2 * 16 * channels * exact + 2 * channels * coded * S::key_format::bits);
    // A value's range takes 32 bits a token; one outlier at each end is 0.07 / 2 of 32 channels, of 32 bits.
    bits += static_cast<double>(coded * (32 + 2 * 32)) + 32 * static_cast<double>(k_outliers);
  }
  CHECK(cache->bits_per_element() == Approx(bits / static_cast<double>(2 * 2 * tokens * channels)).epsilon(1e-12));
}

TEST_CASE("keys and values far from those of the calibration come back whole, as outliers") {
  using S = spec<nuq<2>, nuq<2>>;
  auto const it = small_artifact<S>(key_space::pre_rope, 0);
  inline_executor executor;
  artifact_simulator<S> cache(it, "far", executor);
  float_matrix k(3, 32), v(3, 32, 1);
  for (std::size_t t = 0; t < 3; ++t)
    for (std::size_t c = 0; c < 32; ++c) k(t, c) = (c % 2 == 0 ? 1.0f : -1.0f) * static_cast<float>(1000 + 10 * c + t);
  v(1, 7) = 2001;
  v(1, 8) = -1999;
  auto const k_exact = k, v_exact = v;
  cache.keys_pre_rope(0, k.view());
  cache.values(0, v.view());
  for (std::size_t i = 0; i < k.values.size(); ++i)
    CHECK(std::abs(k.values[i] - k_exact.values[i]) < 1);  // half a unit of a residual below 2048
  CHECK(v.values == v_exact.values);
  // Every key is one sparse entry; a value's two outliers take one each.
  CHECK(cache.bits_per_element() == Approx((2 + 32.0 + 2 + (32 + 64) / 32.0) / 2));
}

TEST_CASE("an artifact without outliers keeps none") {
  using S = spec<nuq<3>, nuq<3>>;
  auto calibration = test::small_options();
  calibration.outlier_fraction_k = calibration.outlier_fraction_v = 0;
  auto it = fit<S>(test::small_calibration(calibration), test::small_fit());
  scratch_file const file;
  save(it, file);
  inline_executor executor;
  auto const cache = simulate_artifact(file, small_model(), small_hash, executor);
  CHECK(cache->name() == "nuq3");
  auto k = random_keys(100, 32, 60), v = random_keys(100, 32, 61);
  auto const k_exact = reference::to_matrix(k), v_exact = reference::to_matrix(v);
  cache->keys_pre_rope(1, k.view());
  cache->values(1, v.view());
  auto const& from = it.layers[1];
  check_equal(k, k_exact, reference::quantize_keys(k_exact, from.key_ranges, levels_of(from.key), false), 1);
  check_equal(v, v_exact, reference::quantize_values(v_exact, 0, levels_of(from.value)), 1);
  // The first token is exact.
  CHECK(cache->bits_per_element() == Approx((2 * 32 * 16 + 99 * (2 * 32 * 3 + 32)) / 6400.0));
}

TEST_CASE("keys and values are rounded to the same bits for any number of threads") {
  using S = spec<nuq<4>, nuq<4>>;
  auto const it = small_artifact<S>(key_space::pre_rope, 1);
  auto const k = random_keys(300, 32, 70), v = random_keys(300, 32, 71);
  std::vector<float> first_k, first_v;
  double bits = 0;
  for (int const threads : {1, 2, 3}) {
    cpu::thread_pool pool(threads);
    artifact_simulator<S> cache(it, "threads", pool);
    auto k_found = k, v_found = v;
    cache.keys_pre_rope(0, k_found.view());
    cache.values(0, v_found.view());
    if (threads == 1) {
      first_k = k_found.values;
      first_v = v_found.values;
      bits = cache.bits_per_element();
    }
    CHECK(k_found.values == first_k);
    CHECK(v_found.values == first_v);
    CHECK(cache.bits_per_element() == bits);
  }
}

template <Spec S>
std::string label_of(artifact<S> it) {
  scratch_file const file;
  save(it, file);
  inline_executor executor;
  return simulate_artifact(file, small_model(), small_hash, executor)->name();
}

TEST_CASE("the label says the format and what differs from the usual") {
  auto usual = small_artifact<spec<nuq<3>, nuq<3>>>(key_space::pre_rope, 1);
  CHECK(label_of(usual) == "nuq3-2%/7%");
  usual.info.outlier_fraction_v = 0.02;
  CHECK(label_of(usual) == "nuq3-2%");
  auto other = small_artifact<spec<uniform<4>, uniform<4>>>(key_space::post_rope, 0);
  other.info.weights = fit_weights::none;
  CHECK(label_of(other) == "int4-2%/7%, 0 sinks, post-RoPE keys, weights none");
  CHECK(label_of(small_artifact<spec<nuq<2>, nuq<2>>>(key_space::pre_rope, 2, true)) == "nuq2-2%/7%, 2 sinks, Q-Norm");
}

TEST_CASE("an artifact of another model is refused with both names") {
  auto it = small_artifact<spec<nuq<3>, nuq<3>>>(key_space::pre_rope, 1);
  scratch_file const file;
  save(it, file);
  inline_executor executor;
  auto const error_with = [&](model_config const& config, std::string const& hash) {
    return test::error_of([&] { simulate_artifact(file, config, hash, executor); });
  };
  auto const hash = error_with(small_model(), "fedc");
  CHECK(hash.code == errc::bad_format);
  CHECK_THAT(hash.text, test::says("\"a small model\"") && test::says("\"this model\"") && test::says("0123") &&
                            test::says("fedc"));
  for (int model_config::*const member : {&model_config::layers, &model_config::kv_heads, &model_config::head_dim}) {
    auto config = small_model();
    config.*member *= 2;
    auto const shape = error_with(config, small_hash);
    CHECK(shape.code == errc::bad_format);
    CHECK_THAT(shape.text,
               test::says("2 layers, 2 KV heads x 16") &&
                   test::says(text(config.layers, " layers, ", config.kv_heads, " KV heads x ", config.head_dim)));
  }
}

TEST_CASE("a file that is no artifact is refused by name") {
  inline_executor executor;
  scratch_file const file;
  auto const t = test::error_of([&] { simulate_artifact(file, small_model(), small_hash, executor); });
  CHECK(t.code == errc::bad_file);
  CHECK_THAT(t.text, test::says("kvquant_simulator_"));
}

}  // namespace
}  // namespace kvquant::runtime
