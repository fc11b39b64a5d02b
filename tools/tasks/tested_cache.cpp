#include "tools/tasks/tested_cache.hpp"

#include <algorithm>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/cache_engine.hpp"
#include "tools/tasks/prompt.hpp"

namespace kvquant::tasks {

namespace {

using runtime::matrix;

constexpr std::size_t chunk = 256;  // tokens of a call, whose hidden states are there at a time

/// Puts tokens on a sequence; the hidden states of those from `first` on.
matrix read_on(runtime::model const& model, engine_sequence& sequence, std::span<token_id const> ids,
               std::size_t first) {
  matrix kept(static_cast<Eigen::Index>(ids.size() - first), model.config().hidden);
  for (std::size_t at = 0; at < ids.size(); at += chunk) {
    std::size_t const count = std::min(chunk, ids.size() - at);
    matrix const hidden = runtime::forward(model, ids.subspan(at, count), sequence);
    for (std::size_t i = std::max(at, first); i < at + count; ++i)
      kept.row(static_cast<Eigen::Index>(i - first)) = hidden.row(static_cast<Eigen::Index>(i - at));
  }
  return kept;
}

/// An answer that grows token by token.
class growing_answer {
 public:
  growing_answer(runtime::model const& model, answer_rules const& rules)
      : model_(model), rules_(rules), scores_(1, model.config().vocabulary) {}

  bool done() const { return done_ || ids_.size() >= rules_.most_tokens; }
  std::vector<token_id>& ids() { return ids_; }

  /// The token behind a hidden state [1, hidden].
  void add(view2d<float const> hidden) {
    if (done()) return;
    model_.logits(hidden, runtime::view_of(scores_));
    token_id const id = rules_.choose(runtime::view_of(scores_).row(0));
    done_ = rules_.ends && rules_.ends(id);
    if (done_) return;
    ids_.push_back(id);
    done_ = rules_.is_enough && rules_.is_enough(ids_);
  }

 private:
  runtime::model const& model_;
  answer_rules const& rules_;
  matrix scores_;
  std::vector<token_id> ids_;
  bool done_ = false;
};

class packed_reader final : public prompt_reader {
 public:
  packed_reader(engine& cache, runtime::model const& model, std::span<prompt_tokens const> prompts)
      : cache_(cache), model_(model), prompts_(prompts), shared_(shared_starts(prompts)), trunk_(cache.open()) {}

  matrix hidden(std::size_t prompt) override { return read(prompt).second; }

  std::vector<std::vector<token_id>> answers(std::size_t first, std::span<answer_request const> requests) override {
    std::vector<std::unique_ptr<engine_sequence>> sequences;
    std::vector<growing_answer> growing;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      auto [sequence, hidden] = read(first + i);
      sequences.push_back(std::move(sequence));
      growing.emplace_back(model_, requests[i].rules);
      growing.back().add(last_row(hidden));
    }
    grow(sequences, growing);
    std::vector<std::vector<token_id>> answers;
    for (growing_answer& it : growing) answers.push_back(std::move(it.ids()));
    return answers;
  }

 private:
  static view2d<float const> last_row(matrix const& hidden) {
    return runtime::view_of(hidden).middle_rows(static_cast<std::size_t>(hidden.rows()) - 1, 1);
  }

  /// Until all are done.
  void grow(std::span<std::unique_ptr<engine_sequence> const> sequences, std::span<growing_answer> answers) {
    while (true) {
      std::vector<growing_answer*> open;
      std::vector<engine_sequence*> on;
      std::vector<token_id> last;
      for (std::size_t i = 0; i < answers.size(); ++i) {
        if (answers[i].done()) continue;
        open.push_back(&answers[i]);
        on.push_back(sequences[i].get());
        last.push_back(answers[i].ids().back());
      }
      if (open.empty()) return;
      matrix const hidden = runtime::forward_together(model_, last, cache_, on);
      for (std::size_t i = 0; i < open.size(); ++i) open[i]->add(runtime::view_of(hidden).middle_rows(i, 1));
    }
  }

  /// A sequence that holds the prompt, and its hidden states.
  std::pair<std::unique_ptr<engine_sequence>, matrix> read(std::size_t prompt) {
    // What is shared is read in the same pieces whichever prompts were read before, so that sums round alike.
    for (; next_ <= prompt; ++next_) {
      std::size_t const there = trunk_->tokens();
      read_on(model_, *trunk_, std::span(prompts_[next_].ids).subspan(there, shared_[next_] - there),
              shared_[next_] - there);
    }
    auto sequence = trunk_->fork();
    std::size_t const there = trunk_->tokens();
    auto const& [ids, first] = prompts_[prompt];
    matrix hidden = read_on(model_, *sequence, std::span(ids).subspan(there), first - there);
    return {std::move(sequence), std::move(hidden)};
  }

  engine& cache_;
  runtime::model const& model_;
  std::span<prompt_tokens const> prompts_;
  std::vector<std::size_t> shared_;
  std::unique_ptr<engine_sequence> trunk_;
  std::size_t next_ = 0;
};

class packed_cache final : public tested_cache {
 public:
  explicit packed_cache(std::unique_ptr<engine> cache) : cache_(std::move(cache)) {}
  std::unique_ptr<prompt_reader> read(runtime::model const& model, std::span<prompt_tokens const> prompts) override {
    return std::make_unique<packed_reader>(*cache_, model, prompts);
  }

 private:
  std::unique_ptr<engine> cache_;
};

class simulated_reader final : public prompt_reader {
 public:
  simulated_reader(runtime::simulator& cache, runtime::model const& model, std::span<prompt_tokens const> prompts)
      : cache_(cache), model_(model), prompts_(prompts) {}

  matrix hidden(std::size_t prompt) override { return read(prompts_[prompt].ids, prompts_[prompt].first); }

  std::vector<std::vector<token_id>> answers(std::size_t first, std::span<answer_request const> requests) override {
    std::vector<std::vector<token_id>> answers;
    for (answer_request const& it : requests) answers.push_back(answer(prompts_[first + answers.size()].ids, it));
    return answers;
  }

 private:
  std::vector<token_id> answer(std::span<token_id const> prompt, answer_request const& wanted) {
    std::vector<token_id> const& guess = wanted.guess;
    growing_answer answer(model_, wanted.rules);
    while (!answer.done()) {
      std::vector<token_id> tried(prompt.begin(), prompt.end());
      std::size_t const known = answer.ids().size();
      tried.insert(tried.end(), answer.ids().begin(), answer.ids().end());
      if (known < guess.size())
        tried.insert(tried.end(), guess.begin() + static_cast<std::ptrdiff_t>(known), guess.end());
      matrix const hidden = read(tried, prompt.size() + known - 1);
      // As long as the guess is right, the next hidden state is that of the answer.
      for (std::size_t row = 0; !answer.done(); ++row) {
        answer.add(runtime::view_of(hidden).middle_rows(row, 1));
        if (answer.done() || known + row >= guess.size() || answer.ids().back() != guess[known + row]) break;
      }
    }
    return std::move(answer.ids());
  }

  matrix read(std::span<token_id const> ids, std::size_t first) {
    return model_.forward(ids, &cache_).bottomRows(static_cast<Eigen::Index>(ids.size() - first));
  }

  runtime::simulator& cache_;
  runtime::model const& model_;
  std::span<prompt_tokens const> prompts_;
};

class simulated_cache final : public tested_cache {
 public:
  explicit simulated_cache(std::unique_ptr<runtime::simulator> cache) : cache_(std::move(cache)) {}
  std::unique_ptr<prompt_reader> read(runtime::model const& model, std::span<prompt_tokens const> prompts) override {
    return std::make_unique<simulated_reader>(*cache_, model, prompts);
  }

 private:
  std::unique_ptr<runtime::simulator> cache_;
};

}  // namespace

std::unique_ptr<tested_cache> test_packed(std::unique_ptr<engine> cache) {
  return std::make_unique<packed_cache>(std::move(cache));
}
std::unique_ptr<tested_cache> test_simulated(std::unique_ptr<runtime::simulator> cache) {
  return std::make_unique<simulated_cache>(std::move(cache));
}

std::vector<std::size_t> shared_starts(std::span<prompt_tokens const> prompts) {
  std::vector<std::size_t> shared(prompts.size());
  std::size_t least = prompts.empty() ? 0 : prompts.back().first;
  for (std::size_t i = prompts.size(); i-- > 0;) {
    if (i + 1 < prompts.size()) least = std::min(least, common_start(prompts[i].ids, prompts[i + 1].ids));
    least = std::min(least, prompts[i].first);
    shared[i] = least;
  }
  // The last has nobody to share with.
  if (prompts.size() > 1) shared.back() = shared[prompts.size() - 2];
  if (prompts.size() == 1) shared.back() = 0;
  return shared;
}

std::vector<token_id> choices(runtime::model const& model, view2d<float const> hidden,
                              std::function<token_id(std::span<float> scores)> const& choose) {
  constexpr std::size_t slab = 128;  // tokens whose scores are there at a time
  matrix scores(static_cast<Eigen::Index>(slab), model.config().vocabulary);
  std::vector<token_id> chosen;
  for (std::size_t first = 0; first < hidden.rows; first += slab) {
    std::size_t const count = std::min(slab, hidden.rows - first);
    auto const rows = runtime::view_of(scores).middle_rows(0, count);
    model.logits(hidden.middle_rows(first, count), rows);
    for (std::size_t i = 0; i < count; ++i) chosen.push_back(choose(rows.row(i)));
  }
  return chosen;
}

}  // namespace kvquant::tasks
