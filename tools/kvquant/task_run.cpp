#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "runtime/scoring.hpp"
#include "tools/kvquant/task.hpp"
#include "tools/tasks/batches.hpp"
#include "tools/tasks/drift.hpp"

namespace kvquant::tool {

namespace {

using runtime::matrix, runtime::token_id;
using tasks::prompt_tokens, tasks::sample, tasks::sample_group;

token_id likeliest(std::span<float> scores) {
  return static_cast<token_id>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

bool has_line(task_run const& run, sample const& it, std::size_t cache) {
  return run.results.find(it.id(), run.caches[cache].name) != nullptr;
}

bool has_all(task_run const& run, std::span<sample const> samples, std::size_t cache) {
  return std::all_of(samples.begin(), samples.end(), [&](sample const& it) { return has_line(run, it, cache); });
}

/// Lines of a sample that are to come.
std::size_t missing_lines(task_run const& run, sample const& it) {
  std::size_t missing = 0;
  for (std::size_t cache = 0; cache < run.caches.size(); ++cache) missing += has_line(run, it, cache) ? 0 : 1;
  return missing;
}
std::size_t missing_lines(task_run const& run, sample_group const& group) {
  std::size_t missing = 0;
  for (sample const& it : group) missing += missing_lines(run, it);
  return missing;
}
std::size_t missing_lines(task_run const& run, std::vector<sample_group> const& groups) {
  std::size_t missing = 0;
  for (sample_group const& group : groups) missing += missing_lines(run, group);
  return missing;
}

/// What every line says.
nlohmann::json line_of(task_run const& run, sample const& it, std::size_t cache) {
  nlohmann::json line = {{"sample", it.id()}, {"cache", run.caches[cache].name},
                         {"task", it.task},   {"length", it.length},
                         {"index", it.index}, {"prompt_tokens", it.prompt.size()}};
  if (it.depth) line["depth"] = *it.depth;
  if (it.chance > 0) line["chance"] = it.chance;
  return line;
}

/// The first line of an answer that is not empty, and whether it is at its end.
std::pair<std::string, bool> first_line(std::string const& text) {
  std::size_t const start = std::min(text.find_first_not_of('\n'), text.size()), end = text.find('\n', start);
  return {text.substr(start, end - start), end != text.npos};
}

/// What counts of the tokens of an answer.
std::string counted_text(task_run const& run, sample const& it, std::span<token_id const> ids) {
  std::string text = run.opened.tokenizer.decode(ids);
  return it.first_line ? first_line(text).first : text;
}

tasks::answer_rules rules_for(task_run const& run, sample const& it) {
  return {.most_tokens = it.most_tokens,
          .choose = likeliest,
          .ends = [&run](token_id id) { return run.opened.ends_answer(id); },
          .is_enough =
              [&run, &it](std::span<token_id const> so_far) {
                std::string const text = run.opened.tokenizer.decode(so_far);
                if (it.first_line) return first_line(text).second;
                return tasks::is_final(it.kind, tasks::score(it.kind, text, it.expected));
              }};
}

/// Of consecutive samples with one cache, f16's answers as guesses.
std::vector<tasks::answer_request> requests_for(task_run const& run, std::span<sample const> samples,
                                                std::size_t cache) {
  std::vector<tasks::answer_request> requests;
  for (sample const& it : samples) {
    requests.push_back({.rules = rules_for(run, it)});
    if (cache > 0)
      requests.back().guess = run.opened.tokenizer.encode(
          run.results.find(it.id(), run.caches[0].name)->at("answer").get<std::string>(), {.add_special = false});
  }
  return requests;
}

void append_answer(task_run const& run, sample const& it, std::size_t cache, std::span<token_id const> ids) {
  std::string const answer = counted_text(run, it, ids);
  auto line = line_of(run, it, cache);
  line["expected"] = it.expected.answers;
  line["answer"] = answer;
  line["metric"] = tasks::name_of(it.kind);
  line["score"] = tasks::score(it.kind, answer, it.expected);
  run.results.append(std::move(line));
}

}  // namespace

void run_answers(task_run const& run, std::vector<sample_group> const& groups) {
  progress bar("answering", missing_lines(run, groups), run.options.common.quiet);
  for (sample_group const& group : groups) {
    auto const prompts = tasks::prompts_of(group);
    auto const batches = tasks::batches_of(group);
    for (std::size_t cache = 0; cache < run.caches.size(); ++cache) {
      if (has_all(run, group, cache)) continue;
      auto const reader = run.caches[cache].cache->read(run.model, prompts);
      for (tasks::sample_batch const& batch : batches) {
        // All of a batch, though some have their lines: sums round alike whenever a run was stopped.
        auto const samples = std::span(group).subspan(batch.first, batch.count);
        if (has_all(run, samples, cache)) continue;
        auto const answers = reader->answers(batch.first, requests_for(run, samples, cache));
        for (std::size_t i = 0; i < samples.size(); ++i) {
          if (has_line(run, samples[i], cache)) continue;
          append_answer(run, samples[i], cache, answers[i]);
          bar.advance();
        }
      }
    }
  }
}

namespace {

/// The hidden states that predict something: all but the last.
view2d<float const> predicting(matrix const& hidden) {
  return runtime::view_of(hidden).middle_rows(0, static_cast<std::size_t>(hidden.rows()) - 1);
}

double sum(std::vector<double> const& x) { return std::accumulate(x.begin(), x.end(), 0.0); }

/// How far from f16 a cache is, and what it makes of what comes.
void add_scores(nlohmann::json& line, runtime::token_scores const& scores) {
  auto const n = static_cast<double>(scores.nll.size());
  line["answer_tokens"] = scores.nll.size();
  line["kl"] = sum(scores.kl) / n;
  line["kl_max"] = *std::max_element(scores.kl.begin(), scores.kl.end());
  line["nll"] = sum(scores.nll);
  line["top1_agreement"] = static_cast<double>(std::count(scores.top1_agrees.begin(), scores.top1_agrees.end(), 1)) / n;
}

}  // namespace

void run_needle_kl(task_run const& run, std::vector<sample_group> const& groups) {
  progress bar("comparing", missing_lines(run, groups), run.options.common.quiet);
  for (sample_group const& group : groups) {
    if (missing_lines(run, group) == 0) continue;
    std::vector<prompt_tokens> told;
    for (sample const& it : group) told.push_back({it.told, tasks::common_start(it.prompt, it.told) - 1});
    std::vector<matrix> base;  // of f16, by sample
    for (std::size_t cache = 0; cache < run.caches.size(); ++cache) {
      if (cache > 0 && has_all(run, group, cache)) continue;
      auto const reader = run.caches[cache].cache->read(run.model, told);
      for (std::size_t i = 0; i < group.size(); ++i) {
        if (cache > 0 && has_line(run, group[i], cache)) continue;
        matrix const hidden = reader->hidden(i);
        if (cache == 0) base.push_back(hidden);
        if (has_line(run, group[i], cache)) continue;
        auto const answer = std::span(told[i].ids).subspan(told[i].first + 1);
        auto line = line_of(run, group[i], cache);
        add_scores(line,
                   runtime::score_rows(run.model, std::array{predicting(base[i]), predicting(hidden)}, answer)[1]);
        run.results.append(std::move(line));
        bar.advance();
      }
    }
  }
}

namespace {

/// How tokens are chosen that never end a text.
class endless_choice {
 public:
  endless_choice(task_run const& run, std::size_t index) : run_(run), sampler_(options_of(run, index)) {}

  token_id operator()(std::span<float> scores) {
    for (token_id const end : run_.opened.answer_ends())
      if (end >= 0 && static_cast<std::size_t>(end) < scores.size())
        scores[static_cast<std::size_t>(end)] = -std::numeric_limits<float>::infinity();
    return sampler_.next(scores);
  }

 private:
  static runtime::sampling_options options_of(task_run const& run, std::size_t index) {
    auto options = run.options.sampling;
    options.seed = run.options.seed + index;
    return options;
  }
  task_run const& run_;
  runtime::sampler sampler_;
};

bool is_written(task_run const& run, sample const& it) { return has_line(run, it, 0); }

/// What the model writes with f16, or wrote in a run that was stopped.
std::vector<token_id> written_text(task_run const& run, sample const& it, progress& bar) {
  if (is_written(run, it)) return run.results.find(it.id(), run.caches[0].name)->at("ids").get<std::vector<token_id>>();
  std::array const prompt = {prompt_tokens{it.prompt, it.prompt.size() - 1}};
  auto const choose = [&bar, choice = endless_choice(run, it.index)](std::span<float> scores) mutable {
    bar.advance();
    return choice(scores);
  };
  std::array const wanted = {tasks::answer_request{.rules = {.most_tokens = it.most_tokens, .choose = choose}}};
  return run.caches[0].cache->read(run.model, prompt)->answers(0, wanted).front();
}

/// Steps of progress: a token that is written, or about as many that are read at once as take that time.
constexpr std::size_t tokens_a_step = 16;

std::size_t steps_of(task_run const& run, sample const& it) {
  return (is_written(run, it) ? 0 : it.length) + missing_lines(run, it) * (it.length / tokens_a_step);
}

nlohmann::json to_json(tasks::drift_bucket const& it) {
  return {{"first", it.first}, {"tokens", it.count}, {"kl", it.kl}, {"agreement", it.agreement}};
}

void add_drift(nlohmann::json& line, tasks::drift const& it) {
  line["first_divergence"] = it.first_divergence ? nlohmann::json(*it.first_divergence) : nlohmann::json();
  line["tokens"] = it.all.count;
  line["kl"] = it.all.kl;
  line["agreement"] = it.all.agreement;
  for (tasks::drift_bucket const& bucket : it.buckets) line["buckets"].push_back(to_json(bucket));
}

}  // namespace

void run_drift(task_run const& run, std::vector<sample_group> const& groups) {
  constexpr std::size_t most_buckets = 8;
  std::size_t steps = 0;
  for (sample_group const& group : groups)
    for (sample const& it : group) steps += steps_of(run, it);
  progress bar("writing and reading", steps, run.options.common.quiet);
  for (sample_group const& group : groups)
    for (sample const& it : group) {
      if (missing_lines(run, it) == 0) continue;
      auto const written = written_text(run, it, bar);
      std::array told = {prompt_tokens{it.prompt, it.prompt.size() - 1}};
      told[0].ids.insert(told[0].ids.end(), written.begin(), written.end() - 1);
      matrix base;
      for (std::size_t cache = 0; cache < run.caches.size(); ++cache) {
        if (cache > 0 && has_line(run, it, cache)) continue;
        matrix const hidden = run.caches[cache].cache->read(run.model, told)->hidden(0);
        if (cache == 0) base = hidden;
        if (has_line(run, it, cache)) continue;
        auto const views = std::array{runtime::view_of(std::as_const(base)), runtime::view_of(hidden)};
        auto const kl = runtime::score_rows(run.model, views, written)[1].kl;
        auto const chosen = tasks::choices(run.model, views[1], endless_choice(run, it.index));
        auto line = line_of(run, it, cache);
        add_drift(line, tasks::drift_of(written, chosen, kl, most_buckets));
        if (cache == 0) {
          line["ids"] = written;
          line["text"] = run.opened.tokenizer.decode(written);
        }
        run.results.append(std::move(line));
        bar.advance(it.length / tokens_a_step);
      }
    }
}

}  // namespace kvquant::tool
