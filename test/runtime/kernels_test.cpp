#include "runtime/kernels.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace kvquant::runtime {
namespace {

using floats = std::vector<float>;
using doubles = std::vector<double>;

constexpr float infinity = std::numeric_limits<float>::infinity();

/// Around whole vectors of every width, and around the 1024 values that are summed in single precision.
std::vector<std::size_t> sizes() {
  std::vector<std::size_t> all(70);
  std::iota(all.begin(), all.end(), std::size_t{1});
  all.insert(all.end(), {1000, 1023, 1024, 1025, 2049, 5000});
  return all;
}

floats random_floats(std::size_t n, unsigned seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  floats x(n);
  for (float& value : x) value = normal(random);
  return x;
}

doubles widen(floats const& x) { return {x.begin(), x.end()}; }

/// The largest difference, relative to the largest expected magnitude.
double distance(floats const& found, doubles const& expected) {
  REQUIRE(found.size() == expected.size());
  double difference = 0, scale = 1e-30;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!std::isfinite(found[i])) return infinity;
    difference = std::max(difference, std::abs(static_cast<double>(found[i]) - expected[i]));
    scale = std::max(scale, std::abs(expected[i]));
  }
  return difference / scale;
}

double log_sum_exp_of(floats const& x) {
  double const most = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (float const value : x) sum += std::exp(static_cast<double>(value) - most);
  return most + std::log(sum);
}

doubles softmax_of(floats const& x) {
  double const lse = log_sum_exp_of(x);
  doubles p;
  for (float const value : x) p.push_back(std::exp(static_cast<double>(value) - lse));
  return p;
}

double inverse_rms_of(floats const& x, double epsilon) {
  double squares = 0;
  for (float const value : x) squares += static_cast<double>(value) * static_cast<double>(value);
  return 1 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
}

TEST_CASE("RMS norm agrees with double precision") {
  constexpr float epsilon = 1e-5f;
  float const scale = GENERATE(1e-4f, 1.0f, 1e4f);  // below, about and above sqrt(epsilon)
  for (std::size_t const n : sizes()) {
    auto const x = random_floats(n, 1, scale), weight = random_floats(n, 2);
    double const r = inverse_rms_of(x, epsilon);
    doubles expected;
    for (std::size_t i = 0; i < n; ++i)
      expected.push_back(r * static_cast<double>(x[i]) * static_cast<double>(weight[i]));
    floats out(n + 1, 7.0f);
    kernels::rms_norm(x, weight, epsilon, std::span(out).first(n));
    CHECK(out.back() == 7.0f);
    out.pop_back();
    INFO("n = " << n);
    CHECK(distance(out, expected) < 1e-6);

    floats in_place = x;
    kernels::rms_norm(in_place, weight, epsilon, in_place);
    CHECK(in_place == out);
  }
}

TEST_CASE("RMS norm of zeros is zero") {
  floats x(37, 0.0f), weight(37, 3.0f);
  kernels::rms_norm(x, weight, 1e-5f, x);
  CHECK(x == floats(37, 0.0f));
}

TEST_CASE("the gradient of RMS norm is its Jacobian's transpose times the output's, added to what is there") {
  constexpr float epsilon = 1e-5f;
  float const scale = GENERATE(1e-3f, 1.0f, 100.0f);
  for (std::size_t const n : std::vector<std::size_t>{1, 2, 7, 8, 31, 33, 64, 70, 300}) {
    auto const x = random_floats(n, 3, scale), weight = random_floats(n, 4), dy = random_floats(n, 5),
               before = random_floats(n, 6, 1 / scale);
    double const r = inverse_rms_of(x, epsilon);
    doubles expected = widen(before);
    for (std::size_t j = 0; j < n; ++j)
      for (std::size_t i = 0; i < n; ++i) {
        double const product = static_cast<double>(x[i]) * static_cast<double>(x[j]);
        double const slope = (i == j ? r : 0) - r * r * r * product / static_cast<double>(n);
        expected[j] += static_cast<double>(dy[i]) * static_cast<double>(weight[i]) * slope;
      }
    floats dx = before;
    kernels::rms_norm_backward(x, weight, epsilon, dy, dx);
    INFO("n = " << n);
    CHECK(distance(dx, expected) < 2e-6);
  }
}

TEST_CASE("softmax agrees with double precision") {
  float const scale = GENERATE(0.1f, 1.0f, 30.0f, 1e4f);
  for (std::size_t const n : sizes()) {
    auto const x = random_floats(n, 7, scale);
    floats p = x;
    kernels::softmax(p);
    INFO("n = " << n << ", scale " << scale);
    CHECK(distance(p, softmax_of(x)) < 2e-6);
    CHECK(std::accumulate(p.begin(), p.end(), 0.0) == Approx(1).epsilon(1e-6));
  }
}

TEST_CASE("softmax of equal scores is uniform, however large they are") {
  float const score = GENERATE(0.0f, 1e-30f, 3e38f, -3e38f);
  for (std::size_t const n : sizes()) {
    floats p(n, score);
    kernels::softmax(p);
    CHECK(distance(p, doubles(n, 1 / static_cast<double>(n))) < 1e-6);
  }
}

TEST_CASE("scores of minus infinity get no probability, wherever they stand") {
  for (std::size_t const n : sizes()) {
    auto x = random_floats(n, 8);
    for (std::size_t i = 0; i < n; ++i)
      if (i % 3 != n % 3) x[i] = -infinity;
    x[n - 1] = 0.5f;
    floats p = x;
    kernels::softmax(p);
    INFO("n = " << n);
    CHECK(distance(p, softmax_of(x)) < 1e-6);
    for (std::size_t i = 0; i < n; ++i)
      if (x[i] == -infinity) CHECK(p[i] == 0.0f);
  }
}

TEST_CASE("scores far below the largest get no probability") {
  floats p = {-3e38f, 3e38f, 0, -200, 3e38f, -3e38f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  kernels::softmax(p);
  floats expected(p.size(), 0.0f);
  expected[1] = expected[4] = 0.5f;
  CHECK(p == expected);
}

TEST_CASE("the gradient of softmax agrees with double precision") {
  for (std::size_t const n : sizes()) {
    floats p = random_floats(n, 9, 2);
    kernels::softmax(p);
    floats dp = random_floats(n, 10);
    double along = 0;
    for (std::size_t i = 0; i < n; ++i) along += static_cast<double>(p[i]) * static_cast<double>(dp[i]);
    doubles expected;
    for (std::size_t i = 0; i < n; ++i)
      expected.push_back(static_cast<double>(p[i]) * (static_cast<double>(dp[i]) - along));
    kernels::softmax_backward(p, dp);
    double worst = 0;  // absolute: where one probability is nearly 1, what is left are differences
    for (std::size_t i = 0; i < n; ++i) worst = std::max(worst, std::abs(static_cast<double>(dp[i]) - expected[i]));
    INFO("n = " << n);
    CHECK(worst < 1e-6);
  }
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

/// An activation f of a gate and its derivative, in double precision.
struct activation_of_gate {
  double value, slope;
};

/// f(gate) · up and its gradients with respect to both, in place too. `f(gate)`: an `activation_of_gate`.
template <class F>
void check_gated(decltype(kernels::silu_multiply)& multiply, decltype(kernels::silu_multiply_backward)& backward,
                 floats const& gate, floats const& up, floats const& dy, double tolerance, F&& f) {
  std::size_t const n = gate.size();
  doubles out, d_gate, d_up;
  for (std::size_t i = 0; i < n; ++i) {
    double const u = up[i], d = dy[i];
    auto const [value, slope] = f(double{gate[i]});
    out.push_back(value * u);
    d_gate.push_back(d * u * slope);
    d_up.push_back(d * value);
  }
  floats found(n), found_gate = gate, found_up = up;
  multiply(gate, up, found);
  backward(found_gate, found_up, dy);
  INFO("n = " << n);
  CHECK(distance(found, out) < tolerance);
  CHECK(distance(found_gate, d_gate) < tolerance);
  CHECK(distance(found_up, d_up) < tolerance);

  floats in_place = gate;
  multiply(in_place, up, in_place);
  CHECK(in_place == found);
}

TEST_CASE("SiLU and its gradient agree with double precision") {
  float const scale = GENERATE(1e-3f, 1.0f, 20.0f);
  for (std::size_t const n : sizes())
    check_gated(kernels::silu_multiply, kernels::silu_multiply_backward, random_floats(n, 11, scale),
                random_floats(n, 12), random_floats(n, 13), 2e-6, [](double g) {
                  double const s = sigmoid_of(g);
                  return activation_of_gate{g * s, s + g * s * (1 - s)};
                });
}

TEST_CASE("SiLU of gates beyond the range of the exponential is the gate or nothing") {
  for (float const size : {88.0f, 90.0f, 103.0f, 105.0f, 178.0f, 200.0f, 1000.0f, 1e6f, 3e38f}) {
    INFO("gate " << size);
    floats const up(19, 1.0f), dy(19, 1.0f);
    floats gate(19, size), out(19), d_up = up;
    kernels::silu_multiply(gate, up, out);
    CHECK(out == floats(19, size));
    kernels::silu_multiply_backward(gate, d_up, dy);
    CHECK(gate == floats(19, 1.0f));
    CHECK(d_up == floats(19, size));

    gate.assign(19, -size);
    d_up = up;
    kernels::silu_multiply(gate, up, out);
    kernels::silu_multiply_backward(gate, d_up, dy);
    for (floats const& all : {out, gate, d_up})
      CHECK(std::all_of(all.begin(), all.end(), [](float x) { return std::abs(x) < 1e-30f; }));
  }
}

TEST_CASE("GELU in its tanh form and its derivative") {
  auto const gelu = [](double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
  };
  for (std::size_t const n : sizes())
    check_gated(kernels::gelu_multiply, kernels::gelu_multiply_backward, random_floats(n, 21, 3), random_floats(n, 22),
                random_floats(n, 23), 3e-6, [&](double g) {
                  constexpr double step = 1e-5;
                  return activation_of_gate{gelu(g), (gelu(g + step) - gelu(g - step)) / (2 * step)};
                });
}

TEST_CASE("GELU of large gates is the gate or nothing") {
  for (float const size : {20.0f, 90.0f, 1000.0f, 1e6f}) {
    INFO("gate " << size);
    floats const up(19, 1.0f), dy(19, 1.0f);
    for (float const sign : {1.0f, -1.0f}) {
      floats gate(19, sign * size), out(19), d_up = up;
      kernels::gelu_multiply(gate, up, out);
      kernels::gelu_multiply_backward(gate, d_up, dy);
      CHECK(out == floats(19, sign > 0 ? size : -0.0f));
      CHECK(gate == floats(19, sign > 0 ? 1.0f : 0.0f));
    }
  }
}

TEST_CASE("the logarithm of the sum of exponentials is accurate to 1e-6") {
  float const scale = GENERATE(0.01f, 1.0f, 10.0f, 100.0f);
  auto all = sizes();
  all.push_back(49152);
  for (std::size_t const n : all) {
    auto const x = random_floats(n, 14, scale);
    INFO("n = " << n << ", scale " << scale);
    CHECK(std::abs(kernels::log_sum_exp(x) - log_sum_exp_of(x)) < 1e-6);
  }
}

TEST_CASE("the logarithm of a sum of equal, huge or absent terms") {
  CHECK(kernels::log_sum_exp(floats(1000, 2.0f)) == Approx(2 + std::log(1000.0)).epsilon(1e-7));
  CHECK(kernels::log_sum_exp(floats{3e38f}) == 3e38f);
  CHECK(kernels::log_sum_exp(floats{-1e30f, -1e30f}) == -1e30f);
  floats x(50, -infinity);
  x[33] = 4;
  CHECK(kernels::log_sum_exp(x) == 4);
}

TEST_CASE("the KL divergence agrees with double precision") {
  float const apart = GENERATE(0.01f, 0.3f, 3.0f);
  auto all = sizes();
  all.push_back(49152);
  for (std::size_t const n : all) {
    auto const x = random_floats(n, 15, 3);
    auto y = random_floats(n, 16, apart);
    for (std::size_t i = 0; i < n; ++i) y[i] += x[i] + 11;  // probabilities do not see what is added to all scores
    double const lse_x = log_sum_exp_of(x), lse_y = log_sum_exp_of(y);
    double expected = 0;
    for (std::size_t i = 0; i < n; ++i) {
      double const a = static_cast<double>(x[i]) - lse_x, b = static_cast<double>(y[i]) - lse_y;
      expected += std::exp(a) * (a - b);
    }
    INFO("n = " << n);
    CHECK(std::abs(kernels::kl_divergence(x, lse_x, y, lse_y) - expected) < 2e-6 + 2e-6 * expected);
  }
}

TEST_CASE("scores do not diverge from themselves") {
  for (std::size_t const n : sizes()) {
    auto const x = random_floats(n, 17, 10);
    double const lse = kernels::log_sum_exp(x);
    CHECK(kernels::kl_divergence(x, lse, x, lse) == 0.0);
  }
}

TEST_CASE("scaled probabilities agree with double precision") {
  for (std::size_t const n : sizes()) {
    auto const x = random_floats(n, 18, 4);
    auto expected = softmax_of(x);
    for (double& p : expected) p *= 0.125;
    floats found = x;
    kernels::scaled_probabilities(found, log_sum_exp_of(x), 0.125f);
    INFO("n = " << n);
    CHECK(distance(found, expected) < 3e-6);
  }
}

}  // namespace
}  // namespace kvquant::runtime
