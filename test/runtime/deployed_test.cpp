#include "runtime/simulation/deployed.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu/generic/backend.hpp"
#include "runtime/simulation/artifact_simulator.hpp"
#include "runtime/simulation/baselines.hpp"
#include "test/runtime/model_artifact.hpp"

namespace kvquant::runtime {
namespace {

using test::artifact_of;
using test::float_matrix;
using test::model_pair;
using test::random_ids;
using test::relative_error;
using test::tiny_model;

/// Sets what it is given to 1, at 3 bits, and has a window that keeps everything exact.
class marking_simulator final : public simulator {
 public:
  marking_simulator() : simulator("marking") {}
  void keys_pre_rope(int, view2d<float> k) override { mark(k); }
  void keys_post_rope(int, view2d<float> k) override { mark(k); }
  void values(int, view2d<float> v) override { mark(v); }
  std::optional<exact_window> window() const override {
    return exact_window{[](int) { return 0; }, [](int) { return 0; }};
  }

 private:
  void mark(view2d<float> x) {
    for (std::size_t row = 0; row < x.rows; ++row)
      for (float& value : x.row(row)) value = 1;
    count(x.rows * x.cols, 3 * x.rows * x.cols);
  }
};

std::unique_ptr<simulator> marking(deployed_window window) {
  return simulate_deployed(std::make_unique<marking_simulator>(), window, "marked");
}

std::vector<int> first_exact(deployed_window window, std::vector<int> const& positions) {
  auto const it = marking(window);
  auto const exact = it->window().value();
  std::vector<int> first;
  for (int const t : positions) {
    first.push_back(exact.first_key(t));
    CHECK(exact.first_value(t) == first.back());
  }
  return first;
}

TEST_CASE("a token sees its own page exactly unless it is the page's last") {
  CHECK(first_exact({.sinks = 1}, {0, 1, 63, 64, 65, 127, 128, 129}) == std::vector{1, 1, 1, 65, 65, 65, 129, 129});
  CHECK(first_exact({.sinks = 0}, {0, 1, 62, 63, 64, 127, 128}) == std::vector{0, 0, 0, 64, 64, 128, 128});
  CHECK(first_exact({.sinks = 5}, {0, 3, 67, 68, 69, 132}) == std::vector{5, 5, 5, 69, 69, 133});
}

TEST_CASE("recent pages are seen exactly too") {
  CHECK(first_exact({.sinks = 1, .recent_pages = 1}, {0, 64, 65, 127, 128, 191, 192}) ==
        std::vector{1, 1, 1, 1, 65, 65, 129});
  CHECK(first_exact({.sinks = 0, .recent_pages = 3}, {63, 254, 255, 319}) == std::vector{0, 0, 64, 128});
}

/// Which rows of a window of zeros the inner simulator was given: the first, and how many.
std::pair<std::size_t, std::size_t> rows_given(deployed_window window, std::size_t tokens) {
  auto const it = marking(window);
  float_matrix k(tokens, 4), rotated(tokens, 4), v(tokens, 4);
  it->keys_pre_rope(0, k.view());
  it->keys_post_rope(0, rotated.view());
  it->values(0, v.view());
  CHECK(k.values == v.values);
  CHECK(k.values == rotated.values);
  std::size_t first = 0, count = 0;
  for (std::size_t t = 0; t < tokens; ++t)
    if (k(t, 0) != 0 && count++ == 0) first = t;
  for (std::size_t t = first; t < first + count; ++t) CHECK(k(t, 3) == 1);
  return {first, count};
}

TEST_CASE("whole pages behind the sinks are quantized, and no other token") {
  using given = std::pair<std::size_t, std::size_t>;
  CHECK(rows_given({.sinks = 3}, 2).second == 0);
  CHECK(rows_given({.sinks = 1}, 64).second == 0);
  CHECK(rows_given({.sinks = 1}, 65) == given{1, 64});
  CHECK(rows_given({.sinks = 1}, 128) == given{1, 64});
  CHECK(rows_given({.sinks = 4}, 200) == given{4, 192});
  CHECK(rows_given({.sinks = 0, .recent_pages = 1}, 128) == given{0, 64});
  CHECK(rows_given({.sinks = 1, .recent_pages = 2}, 192).second == 0);
}

TEST_CASE("its name is its own") { CHECK(marking({})->name() == "marked"); }

TEST_CASE("bits are those of sealed pages, and of all that is allocated for exact tokens") {
  auto const bits = [](deployed_window window, std::size_t tokens) {
    auto const it = marking(window);
    float_matrix k(300, 4);
    it->keys_pre_rope(0, k.view());
    return it->bits_at(tokens);
  };
  CHECK(bits({.sinks = 1}, 65) == Approx((3 * 64 + 16 * 65) / 65.0));
  CHECK(bits({.sinks = 1}, 64) == Approx(16 * 65 / 64.0));
  CHECK(bits({.sinks = 4, .recent_pages = 1}, 300) == Approx((3 * 192 + 16 * 132) / 300.0));
  CHECK(bits({.sinks = 1}, 32768) == Approx((3 * 511 * 64 + 16 * 65) / 32768.0));
  CHECK(bits({.sinks = 1, .recent_pages = 2}, 1) == Approx(16 * 193));
}

/// Hidden states of the tiny model through packed pages, and simulated as deployed. A packed cache has tokens in
/// binary16 before it quantizes them; so exact ones differ in their last bits, and a few codes.
struct both_ways {
  matrix packed, simulated, exact;

  template <Spec S>
  both_ways(artifact<S> const& it, model const& m, std::size_t tokens, int recent_pages) {
    auto const ids = random_ids(tokens, tiny_model::vocabulary, 41);
    auto const cache = make_engine<cpu::generic::backend>(it, {.max_tokens = tokens, .recent_pages = recent_pages});
    auto const sinks = static_cast<std::size_t>(it.info.sinks);
    auto const deployed = simulate_deployed(std::make_unique<artifact_simulator<S>>(it, "inner", m.executor(), 0),
                                            {sinks, static_cast<std::size_t>(recent_pages)}, "deployed");
    packed = forward(m, ids, *cache->open());
    simulated = m.forward(ids, deployed.get());
    exact = m.forward(ids);
  }
};

TEST_CASE("packed pages without outliers are what is simulated as deployed") {
  model_pair const it({.architecture = GENERATE("llama", "qwen2"), .seed = 40});
  int const sinks = GENERATE(0, 1, 5), recent_pages = GENERATE(0, 1);
  INFO(it.shape.architecture << ", " << sinks << " sinks, " << recent_pages << " recent pages");
  test::hand_made_options const options{.outliers_k = 0, .outliers_v = 0, .sinks = sinks};
  both_ways const eight(artifact_of<spec<uniform<8>, uniform<8>>>(it, options), it.model, 200, recent_pages);
  CHECK(relative_error(eight.packed, eight.simulated) < 1e-2);
  both_ways const three(artifact_of<spec<nuq<3>, nuq<3>>>(it, options), it.model, 200, recent_pages);
  double const error = relative_error(three.packed, three.exact);
  CHECK(error > 2e-2);
  CHECK(relative_error(three.packed, three.simulated) < error / 10);
}

TEST_CASE("a baseline's own window gives way") {
  model_pair const it({.head_dim = 32, .rotary_dim = 32, .seed = 42});
  auto const ids = random_ids(200, tiny_model::vocabulary, 42);
  auto const kivi = [&] { return simulate_baseline("kivi2", it.model.config(), it.model.executor()); };
  auto const deployed = simulate_deployed(kivi(), {.sinks = 0, .recent_pages = 3}, "kivi2");
  CHECK(it.model.forward(ids, deployed.get()) == it.model.forward(ids));  // nothing is sealed
  auto const sealed = simulate_deployed(kivi(), {.sinks = 0}, "kivi2");
  auto const own = kivi();
  CHECK(it.model.forward(ids, sealed.get()) != it.model.forward(ids, own.get()));
}

}  // namespace
}  // namespace kvquant::runtime
