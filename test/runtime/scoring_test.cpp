#include "runtime/scoring.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "test/runtime/model_pair.hpp"
#include "test/support/thrown.hpp"

namespace kvquant::runtime {
namespace {

using test::model_pair;
using test::random_ids;
using test::real_matrix;
using test::tiny_model;
using test::to_real;

matrix random_hidden(std::size_t rows, int cols, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  return matrix::NullaryExpr(static_cast<Eigen::Index>(rows), cols, [&] { return normal(random); });
}

/// `spread` apart from `x` in every element.
matrix nearby(matrix const& x, float spread, unsigned seed) {
  return x + spread * random_hidden(static_cast<std::size_t>(x.rows()), static_cast<int>(x.cols()), seed);
}

/// log p of every token: [rows, vocabulary].
real_matrix log_probabilities(model_pair const& it, matrix const& hidden) {
  real_matrix scores = it.reference.logits(to_real(hidden));
  for (Eigen::Index t = 0; t < scores.rows(); ++t)
    scores.row(t).array() -= test::reference_model::log_sum_exp(scores.row(t));
  return scores;
}

Eigen::Index likeliest(real_matrix const& scores, Eigen::Index t) {
  Eigen::Index best = 0;
  scores.row(t).maxCoeff(&best);
  return best;
}

void check_scores(token_scores const& found, real_matrix const& row, real_matrix const& base,
                  std::vector<token_id> const& targets) {
  REQUIRE(found.nll.size() == targets.size());
  REQUIRE(found.kl.size() == targets.size());
  REQUIRE(found.top1_agrees.size() == targets.size());
  double nll_error = 0, kl_error = 0;
  std::size_t wrong_top1 = 0;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    auto const t = static_cast<Eigen::Index>(i);
    double const kl = (base.row(t).array().exp() * (base.row(t) - row.row(t)).array()).sum();
    nll_error = std::max(nll_error, std::abs(found.nll[i] + row(t, targets[i])));
    kl_error = std::max(kl_error, std::abs(found.kl[i] - kl) / (1 + kl));
    wrong_top1 += (found.top1_agrees[i] != 0) != (likeliest(row, t) == likeliest(base, t)) ? 1 : 0;
  }
  CHECK(nll_error < 2e-5);
  CHECK(kl_error < 5e-6);
  CHECK(wrong_top1 == 0);
  CHECK(std::all_of(found.kl.begin(), found.kl.end(), [](double kl) { return kl >= 0; }));
}

TEST_CASE("losses, divergences and agreement are those of softmax in double precision") {
  model_pair const it({.tied_embeddings = GENERATE(false, true), .seed = 31});
  std::size_t const count = GENERATE(as<std::size_t>(), 1, 2, 127, 128, 129, 256, 300);  // slabs of 128
  auto const targets = random_ids(count, tiny_model::vocabulary, 31);
  std::vector<matrix> hidden = {random_hidden(count, it.shape.hidden, 31)};
  hidden.push_back(nearby(hidden[0], 0.01f, 32));
  hidden.push_back(nearby(hidden[0], 1, 33));
  hidden.push_back(hidden[0]);
  std::vector<view2d<float const>> rows;
  for (matrix const& m : hidden) rows.push_back(view_of(m));
  auto const found = score_rows(it.model, rows, targets);
  REQUIRE(found.size() == 4);
  auto const base = log_probabilities(it, hidden[0]);
  for (std::size_t row = 0; row < 4; ++row) {
    INFO(count << " predictions, row " << row);
    check_scores(found[row], log_probabilities(it, hidden[row]), base, targets);
  }

  // The first row with itself, and a row that is equal to it.
  CHECK(found[0].kl == std::vector<double>(count, 0.0));
  CHECK(found[3].kl == std::vector<double>(count, 0.0));
  CHECK(found[0].top1_agrees == std::vector<std::uint8_t>(count, 1));
  CHECK(found[3].nll == found[0].nll);
  if (count == 300) {  // the rows are different enough to tell agreement from the lack of it
    auto const agreeing = std::count(found[2].top1_agrees.begin(), found[2].top1_agrees.end(), 1);
    CHECK(agreeing > 10);
    CHECK(agreeing < 290);
  }
}

TEST_CASE("every row is compared with the first one") {
  model_pair const it({.seed = 34});
  auto const targets = random_ids(140, tiny_model::vocabulary, 34);
  matrix const a = random_hidden(140, it.shape.hidden, 34), b = nearby(a, 0.3f, 35);
  auto const forth = score_rows(it.model, std::array{view_of(a), view_of(b)}, targets);
  auto const back = score_rows(it.model, std::array{view_of(b), view_of(a)}, targets);
  CHECK(forth[0].nll == back[1].nll);
  CHECK(forth[1].nll == back[0].nll);
  CHECK(forth[1].top1_agrees == back[1].top1_agrees);
  check_scores(back[1], log_probabilities(it, a), log_probabilities(it, b), targets);
}

TEST_CASE("the loss alone is that of the first row") {
  model_pair const it({.seed = 36});
  auto const targets = random_ids(130, tiny_model::vocabulary, 36);
  matrix const a = random_hidden(130, it.shape.hidden, 36), b = nearby(a, 0.3f, 37);
  auto const both = score_rows(it.model, std::array{view_of(a), view_of(b)}, targets);
  CHECK(negative_log_likelihood(it.model, view_of(a), targets) == both[0].nll);
  CHECK(negative_log_likelihood(it.model, view_of(b), targets) == both[1].nll);
}

TEST_CASE("the mean loss of a window is the one that is differentiated") {
  model_pair const it({.seed = 38});
  auto const ids = random_ids(GENERATE(as<std::size_t>(), 2, 129, 200), tiny_model::vocabulary, 38);
  matrix const hidden = it.model.forward(ids);
  auto const nll =
      negative_log_likelihood(it.model, view_of(hidden).middle_rows(0, ids.size() - 1), std::span(ids).subspan(1));
  double sum = 0;
  for (double const loss : nll) sum += loss;
  CHECK(sum / static_cast<double>(nll.size()) ==
        Approx(it.model.loss_and_gradients(ids, [](int, kv_gradients const&) {})).epsilon(1e-6));
}

TEST_CASE("scores have the same bits for any number of threads") {
  test::memory_gguf const gguf(tiny_model{.type = tensor_type::f16, .seed = 39}.writer());
  auto const targets = random_ids(257, tiny_model::vocabulary, 39);
  matrix const a = random_hidden(257, 64, 39), b = nearby(a, 0.1f, 40);
  std::vector<token_scores> first;
  for (int const threads : {1, 2, 3}) {
    cpu::thread_pool pool(threads);
    model const m(gguf.file(), pool);
    auto found = score_rows(m, std::array{view_of(a), view_of(b)}, targets);
    if (threads == 1) first = found;
    for (std::size_t row = 0; row < 2; ++row) {
      CHECK(found[row].nll == first[row].nll);
      CHECK(found[row].kl == first[row].kl);
      CHECK(found[row].top1_agrees == first[row].top1_agrees);
    }
  }
}

TEST_CASE("nothing to score") {
  model_pair const it({.seed = 41});
  matrix const none(0, it.shape.hidden);
  CHECK(score_rows(it.model, {}, random_ids(3, 256, 1)).empty());
  auto const found = score_rows(it.model, std::array{view_of(none), view_of(none)}, {});
  REQUIRE(found.size() == 2);
  CHECK(found[1].nll.empty());
}

TEST_CASE("targets that do not fit are refused") {
  model_pair const it({.seed = 42});
  matrix const hidden = random_hidden(5, it.shape.hidden, 42), other = random_hidden(4, it.shape.hidden, 43);
  auto const targets = random_ids(5, tiny_model::vocabulary, 42);
  auto const rows = test::error_of([&] { score_rows(it.model, std::array{view_of(hidden), view_of(other)}, targets); });
  CHECK(rows.code == errc::bad_shape);
  CHECK_THAT(rows.text, test::says("4 hidden states for 5 targets"));
  token_id const wrong = GENERATE(-1, 256);
  auto broken = targets;
  broken[4] = wrong;
  auto const target = test::error_of([&] { score_rows(it.model, std::array{view_of(hidden)}, broken); });
  CHECK(target.code == errc::bad_value);
  CHECK_THAT(target.text, test::says("target " + std::to_string(wrong)) && test::says("0 to 255"));
  matrix const narrow = random_hidden(5, it.shape.hidden - 1, 44);
  CHECK(test::error_of([&] { negative_log_likelihood(it.model, view_of(narrow), targets); }).code == errc::bad_shape);
}

}  // namespace
}  // namespace kvquant::runtime
