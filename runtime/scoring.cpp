#include "runtime/scoring.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/kernels.hpp"

namespace kvquant::runtime {

namespace {

std::size_t likeliest(std::span<float const> scores) {
  return static_cast<std::size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

/// What is compared with: one slab of the first row.
struct base_slab {
  matrix scores;                       // [slab, vocabulary]
  std::vector<double> log_sum;         // [slab]
  std::vector<std::size_t> likeliest;  // [slab]
};

}  // namespace

std::vector<token_scores> score_rows(model const& m, std::span<view2d<float const> const> rows,
                                     std::span<token_id const> targets) {
  constexpr std::size_t slab = 128;
  for (view2d<float const> const row : rows)
    require(row.rows == targets.size(), errc::bad_shape, "scores: ", row.rows, " hidden states for ", targets.size(),
            " targets");
  for (token_id const target : targets)
    require(target >= 0 && target < m.config().vocabulary, errc::bad_value, "scores: target ", target,
            ", expected 0 to ", m.config().vocabulary - 1);
  std::vector<token_scores> result(rows.size());
  for (auto& it : result)
    it = {std::vector<double>(targets.size()), std::vector<double>(targets.size()),
          std::vector<std::uint8_t>(targets.size())};
  base_slab base{matrix(static_cast<Eigen::Index>(slab), m.config().vocabulary), std::vector<double>(slab),
                 std::vector<std::size_t>(slab)};
  matrix other(rows.size() > 1 ? base.scores.rows() : 0, base.scores.cols());
  for (std::size_t first = 0; first < targets.size(); first += slab) {
    std::size_t const count = std::min(slab, targets.size() - first);
    for (std::size_t row = 0; row < rows.size(); ++row) {
      auto const scores = view_of(row == 0 ? base.scores : other).middle_rows(0, count);
      m.logits(rows[row].middle_rows(first, count), scores);
      m.executor().parallel_for(count, [&](std::size_t i, int) {
        double const log_sum = kernels::log_sum_exp(scores.row(i));
        std::size_t const best = likeliest(scores.row(i));
        if (row == 0) {
          base.log_sum[i] = log_sum;
          base.likeliest[i] = best;
        }
        std::size_t const at = first + i;
        result[row].nll[at] = log_sum - static_cast<double>(scores(i, static_cast<std::size_t>(targets[at])));
        result[row].top1_agrees[at] = best == base.likeliest[i] ? 1 : 0;
        if (row > 0)  // rounding may leave a little less than 0
          result[row].kl[at] = std::max(
              0.0, kernels::kl_divergence(view_of(base.scores).row(i), base.log_sum[i], scores.row(i), log_sum));
      });
    }
  }
  return result;
}

std::vector<double> negative_log_likelihood(model const& m, view2d<float const> hidden,
                                            std::span<token_id const> targets) {
  return std::move(score_rows(m, std::array{hidden}, targets).front().nll);
}

}  // namespace kvquant::runtime
