#include "runtime/self_text.hpp"

#include <algorithm>
#include <memory>
#include <random>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/cache_engine.hpp"
#include "runtime/sampler.hpp"

namespace kvquant::runtime {

namespace {

/// Windows that are written side by side, so that a pass over the weights serves a token of each.
class writers {
 public:
  writers(model const& m, engine& cache, std::size_t count, std::size_t tokens, std::mt19937_64& seeds) : model_(m) {
    for (std::size_t i = 0; i < count; ++i) {
      sequences_.push_back(cache.open(tokens));
      samplers_.emplace_back(sampling_options{.temperature = 1, .seed = seeds()});
    }
    scores_.resize(static_cast<Eigen::Index>(count), m.config().vocabulary);
  }

  /// What follows the latest token of each window.
  std::vector<token_id> next(std::vector<token_id> const& latest) {
    matrix const hidden = model_.forward(latest, [&](int layer, auto q, auto k, auto v, auto out) {
      for (std::size_t row = 0; row < sequences_.size(); ++row) {
        auto const own = [&](auto const& x) { return x.middle_rows(row, 1); };
        sequences_[row]->append_and_attend(layer, own(k), own(v), own(q), own(out),
                                           {.softmax_scale = model_.config().softmax_scale}, model_.executor());
      }
    });
    model_.logits(view_of(hidden), view_of(scores_));
    std::vector<token_id> ids;
    for (std::size_t row = 0; row < samplers_.size(); ++row)
      ids.push_back(samplers_[row].next(view_of(std::as_const(scores_)).row(row)));
    return ids;
  }

 private:
  model const& model_;
  std::vector<std::unique_ptr<engine_sequence>> sequences_;
  std::vector<sampler> samplers_;
  matrix scores_;
};

}  // namespace

std::vector<std::vector<token_id>> write_self_text(model const& m, std::string const& model_hash, token_id first,
                                                   self_text_options const& options,
                                                   std::function<void()> const& advance) {
  constexpr std::size_t most_together = 8;  // their caches are in memory at once
  auto const context = static_cast<std::size_t>(m.config().context);
  require(options.tokens >= 1 && options.tokens <= context, errc::bad_value, "text of the model's own: windows of ",
          options.tokens, " tokens, expected 1 to ", context, ", the model's context");
  std::size_t const together = std::min(most_together, options.windows);
  std::vector<std::vector<token_id>> windows;
  if (together == 0) return windows;
  std::mt19937_64 seeds(options.seed);  // so that neighbouring seeds have no windows in common
  auto const cache = make_exact_cache(m.config(), model_hash, together * options.tokens);
  for (std::size_t begun = 0; begun < options.windows; begun += together) {
    std::size_t const count = std::min(together, options.windows - begun);
    writers batch(m, *cache, count, options.tokens, seeds);
    std::vector<token_id> latest(count, first);
    windows.resize(begun + count, {first});
    for (std::size_t token = 1; token < options.tokens; ++token) {
      latest = batch.next(latest);
      for (std::size_t i = 0; i < count; ++i) {
        windows[begun + i].push_back(latest[i]);
        if (advance) advance();
      }
    }
  }
  return windows;
}

}  // namespace kvquant::runtime
