#include "runtime/attention.hpp"
#include "kvquant/reference/matrix.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "test/support/random_matrix.hpp"

namespace kvquant::runtime {
namespace {

using reference::to_matrix;
using test::float_matrix;
using test::random_normal;
using double_matrix = Eigen::MatrixXd;

constexpr float unset = std::numeric_limits<float>::quiet_NaN();

/// Random q, k, v and what a window reads instead of the latter two.
struct example {
  attention_shape shape;
  float_matrix q, k, v, k_exact, v_exact;

  example(std::size_t tokens, std::size_t q_heads, std::size_t kv_heads, std::size_t head_dim, float spread = 1,
          std::size_t seen = 0)
      : shape{q_heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<float>(head_dim)), seen},
        q(random_normal(tokens, q_heads * head_dim, 1, spread)),
        k(random_normal(tokens, kv_heads * head_dim, 2, spread)),
        v(random_normal(tokens, kv_heads * head_dim, 3)),
        k_exact(random_normal(tokens, kv_heads * head_dim, 4, spread)),
        v_exact(random_normal(tokens, kv_heads * head_dim, 5)) {}

  std::size_t tokens() const { return q.rows; }
  attention_input input(exact_window const* window = nullptr) const { return {q, k, v, window, k_exact, v_exact}; }
};

/// The softmax of one query's scores. `key(j)` is row j of the keys that this query reads.
template <class Key>
Eigen::VectorXd probabilities(example const& it, Eigen::RowVectorXd const& query, Eigen::Index t, Key&& key) {
  Eigen::VectorXd p = Eigen::VectorXd::Constant(t + 1, -std::numeric_limits<double>::infinity());
  auto const seen = static_cast<Eigen::Index>(it.shape.window);
  for (Eigen::Index j = seen == 0 ? 0 : std::max<Eigen::Index>(0, t + 1 - seen); j <= t; ++j)
    p(j) = static_cast<double>(it.shape.softmax_scale) * query.dot(key(j));
  p = (p.array() - p.maxCoeff()).exp();
  return p / p.sum();
}

double_matrix naive_attention(example const& it, exact_window const* window = nullptr) {
  auto const q = to_matrix(it.q), k = to_matrix(it.k), v = to_matrix(it.v), k_exact = to_matrix(it.k_exact),
             v_exact = to_matrix(it.v_exact);
  auto const d = static_cast<Eigen::Index>(it.shape.head_dim);
  double_matrix out(q.rows(), q.cols());
  for (Eigen::Index t = 0; t < q.rows(); ++t)
    for (std::size_t head = 0; head < it.shape.q_heads; ++head) {
      auto const at = static_cast<Eigen::Index>(head) * d;
      auto const from = static_cast<Eigen::Index>(head / (it.shape.q_heads / it.shape.kv_heads)) * d;
      auto const row = [&](auto const& exact, auto const& changed, auto const& first, Eigen::Index j) {
        bool const is_exact = window != nullptr && j >= first(static_cast<int>(t));
        return Eigen::RowVectorXd((is_exact ? exact : changed).row(j).segment(from, d));
      };
      auto const no_window = [](int) { return 0; };
      auto const p = probabilities(it, q.row(t).segment(at, d), t, [&](Eigen::Index j) {
        return window != nullptr ? row(k_exact, k, window->first_key, j) : row(k_exact, k, no_window, j);
      });
      Eigen::RowVectorXd sum = Eigen::RowVectorXd::Zero(d);
      for (Eigen::Index j = 0; j <= t; ++j)
        sum += p(j) * (window != nullptr ? row(v_exact, v, window->first_value, j) : row(v_exact, v, no_window, j));
      out.row(t).segment(at, d) = sum;
    }
  return out;
}

double distance(view2d<float const> found, double_matrix const& expected) {
  REQUIRE(to_matrix(found).allFinite());
  return (to_matrix(found) - expected).cwiseAbs().maxCoeff();
}

struct heads {
  std::size_t q, kv, dim;
};

TEST_CASE("causal attention agrees with double precision") {
  std::size_t const tokens = GENERATE(as<std::size_t>(), 1, 2, 63, 127, 128, 129, 300);
  auto const [q_heads, kv_heads, dim] = GENERATE(heads{1, 1, 1}, heads{3, 3, 8}, heads{6, 2, 12}, heads{4, 1, 33});
  float const spread = GENERATE(0.1f, 1.0f, 5.0f);
  example const it(tokens, q_heads, kv_heads, dim, spread);
  inline_executor executor;
  float_matrix out(tokens, q_heads * dim, unset);
  attend(it.shape, it.input(), out.view(), executor);
  INFO(tokens << " tokens, heads " << q_heads << ", " << kv_heads << " x " << dim << ", spread " << spread);
  CHECK(distance(out, naive_attention(it)) < (spread > 1 ? 1e-4 : 5e-6));
}

TEST_CASE("later keys and values, whatever they are, are not read") {
  example it(260, 4, 2, 8);
  inline_executor executor;
  float_matrix before(260, 32), after(260, 32);
  attend(it.shape, it.input(), before.view(), executor);
  std::size_t const last = GENERATE(as<std::size_t>(), 0, 100, 127, 128, 258);
  for (std::size_t t = last + 1; t < 260; ++t)
    for (std::size_t c = 0; c < 16; ++c) {
      it.k(t, c) = 1e30f;
      it.v(t, c) = 1e30f;
    }
  attend(it.shape, it.input(), after.view(), executor);
  for (std::size_t t = 0; t <= last; ++t) CHECK(std::ranges::equal(before.view().row(t), after.view().row(t)));
}

/// Windows around a block of queries.
constexpr std::size_t seen_tokens[] = {1, 2, 40, 127, 128, 129, 200, 1000};

TEST_CASE("a query sees the latest keys within its window alone") {
  std::size_t const tokens = GENERATE(as<std::size_t>(), 1, 100, 129, 300);
  inline_executor executor;
  for (std::size_t const seen : seen_tokens) {
    example const it(tokens, 6, 2, 12, 1, seen);
    float_matrix out(tokens, 72, unset);
    attend(it.shape, it.input(), out.view(), executor);
    INFO(tokens << " tokens, window " << seen);
    CHECK(distance(out, naive_attention(it)) < 5e-6);
  }
}

struct named_window {
  char const* name;
  exact_window window;
};

std::vector<named_window> windows() {
  auto const all = [](int) { return 0; };
  auto const below_zero = [](int) { return -5; };
  auto const none = [](int) { return 1 << 20; };
  auto const own = [](int t) { return t; };
  auto const after_own = [](int t) { return t + 1; };
  auto const last = [](int count) { return [count](int t) { return std::max(0, t + 1 - count); }; };
  auto const steps = [](int step) { return [step](int t) { return (t + 1) / step * step; }; };
  return {{"all", {all, all}},
          {"all, from below 0", {below_zero, below_zero}},
          {"none", {none, none}},
          {"a query's own", {own, own}},
          {"after its own: none", {after_own, after_own}},
          {"the last 5 keys, the last 130 values", {last(5), last(130)}},
          {"keys alone", {last(40), none}},
          {"values alone", {none, last(40)}},
          {"steps of 128, the last 128", {steps(128), last(128)}},
          {"steps of 7 and of 100", {steps(7), steps(100)}},
          {"from a fixed token on", {[](int) { return 129; }, [](int) { return 1; }}}};
}

TEST_CASE("a window reads the recent keys and values as they were") {
  std::size_t const tokens = GENERATE(as<std::size_t>(), 1, 2, 127, 128, 129, 300);
  example const it(tokens, 6, 2, 8, 1, GENERATE(as<std::size_t>(), 0, 30, 150));
  inline_executor executor;
  for (auto const& [name, window] : windows()) {
    float_matrix out(tokens, 48, unset);
    attend(it.shape, it.input(&window), out.view(), executor);
    INFO(tokens << " tokens, window: " << name);
    CHECK(distance(out, naive_attention(it, &window)) < 5e-6);
  }
}

struct gradients {
  double_matrix dq, dk, dv;
};

/// dv = Pᵀ dO; with dP = dO Vᵀ and dS = P (dP − Σ P dP): dq = s dS K, dk = s dSᵀ Q.
gradients naive_gradients(example const& it, double_matrix const& d_out) {
  auto const q = to_matrix(it.q), k = to_matrix(it.k), v = to_matrix(it.v);
  auto const d = static_cast<Eigen::Index>(it.shape.head_dim);
  auto const scale = static_cast<double>(it.shape.softmax_scale);
  gradients g{double_matrix::Zero(q.rows(), q.cols()), double_matrix::Zero(k.rows(), k.cols()),
              double_matrix::Zero(v.rows(), v.cols())};
  for (std::size_t head = 0; head < it.shape.q_heads; ++head) {
    auto const at = static_cast<Eigen::Index>(head) * d;
    auto const from = static_cast<Eigen::Index>(head / (it.shape.q_heads / it.shape.kv_heads)) * d;
    for (Eigen::Index t = 0; t < q.rows(); ++t) {
      Eigen::RowVectorXd const query = q.row(t).segment(at, d), dy = d_out.row(t).segment(at, d);
      auto const key = [&](Eigen::Index j) { return Eigen::RowVectorXd(k.row(j).segment(from, d)); };
      auto const p = probabilities(it, query, t, key);
      Eigen::VectorXd const dp = v.block(0, from, t + 1, d) * dy.transpose();
      Eigen::VectorXd const ds = p.array() * (dp.array() - p.dot(dp));
      for (Eigen::Index j = 0; j <= t; ++j) {
        g.dv.row(j).segment(from, d) += p(j) * dy;
        g.dq.row(t).segment(at, d) += scale * ds(j) * key(j);
        g.dk.row(j).segment(from, d) += scale * ds(j) * query;
      }
    }
  }
  return g;
}

TEST_CASE("the gradients of attention agree with double precision") {
  std::size_t const tokens = GENERATE(as<std::size_t>(), 1, 2, 63, 127, 128, 129, 300);
  auto const [q_heads, kv_heads, dim] = GENERATE(heads{1, 1, 2}, heads{3, 3, 8}, heads{6, 2, 12}, heads{4, 1, 33});
  example const it(tokens, q_heads, kv_heads, dim, 1, GENERATE(as<std::size_t>(), 0, 1, 40, 128, 200));
  inline_executor executor;
  auto const d_out = random_normal(tokens, q_heads * dim, 6);
  float_matrix dq(tokens, q_heads * dim, unset), dk(tokens, kv_heads * dim, unset), dv(tokens, kv_heads * dim, unset);
  attend_backward(it.shape, it.input(), d_out, dq.view(), dk.view(), dv.view(), executor);
  auto const expected = naive_gradients(it, to_matrix(d_out));
  INFO(tokens << " tokens, heads " << q_heads << ", " << kv_heads << " x " << dim);
  CHECK(distance(dq, expected.dq) < 1e-5);
  CHECK(distance(dk, expected.dk) < 2e-5);
  CHECK(distance(dv, expected.dv) < 2e-5);
}

TEST_CASE("attention and its gradients have the same bits for any number of threads") {
  example const it(300, 6, 2, 16);
  exact_window const window{[](int t) { return t - 20; }, [](int t) { return t - 150; }};
  auto const d_out = random_normal(300, 96, 7);
  std::vector<std::vector<float>> first;
  for (int const threads : {1, 2, 3}) {
    cpu::thread_pool pool(threads);
    float_matrix out(300, 96), windowed(300, 96), dq(300, 96), dk(300, 32), dv(300, 32);
    attend(it.shape, it.input(), out.view(), pool);
    attend(it.shape, it.input(&window), windowed.view(), pool);
    attend_backward(it.shape, it.input(), d_out, dq.view(), dk.view(), dv.view(), pool);
    std::vector const all = {out.values, windowed.values, dq.values, dk.values, dv.values};
    if (threads == 1) first = all;
    CHECK(all == first);
  }
}

}  // namespace
}  // namespace kvquant::runtime
