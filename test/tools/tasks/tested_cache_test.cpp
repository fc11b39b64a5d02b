#include "tools/tasks/tested_cache.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <span>
#include <utility>

#include "runtime/cache_engine.hpp"
#include "runtime/simulation/baselines.hpp"
#include "runtime/simulation/deployed.hpp"
#include "test/runtime/model_artifact.hpp"
#include "test/runtime/model_pair.hpp"
#include "test/support/containers.hpp"

namespace kvquant::tasks {
namespace {

using runtime::matrix;
using test::model_pair, test::random_ids, test::tiny_model;

token_id likeliest(std::span<float> scores) {
  return static_cast<token_id>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

/// Prompts that share 150, then 220 tokens, with 40 more each.
std::vector<prompt_tokens> chain_of_prompts() {
  auto const trunk = random_ids(220, tiny_model::vocabulary, 1);
  std::vector<prompt_tokens> prompts;
  for (std::size_t const shared : {150u, 220u, 220u}) {
    prompt_tokens it{{trunk.begin(), trunk.begin() + static_cast<std::ptrdiff_t>(shared)}, 0};
    auto const own = random_ids(40, tiny_model::vocabulary, static_cast<unsigned>(10 + prompts.size()));
    it.ids.insert(it.ids.end(), own.begin(), own.end());
    it.first = it.ids.size() - 3;
    prompts.push_back(std::move(it));
  }
  return prompts;
}

/// A model with an artifact for it.
struct subject {
  model_pair pair{tiny_model{.seed = 3}};
  test::temporary_folder folder;
  std::filesystem::path path = folder / "tiny.kvq";

  subject() {
    auto fitted = test::artifact_of<spec<nuq<3>, nuq<3>>>(pair);
    save(fitted, path);
  }
  std::unique_ptr<engine> cache() const {
    return runtime::make_cache(path, "cpu-generic", pair.model.config(), pair.gguf.file().hash(), {.max_tokens = 512});
  }
  std::unique_ptr<runtime::simulator> simulated() {
    return runtime::simulate_deployed(runtime::simulate_baseline("int4", pair.model.config(), pair.executor), {},
                                      "int4");
  }
  static answer_rules rules() { return {.most_tokens = 20, .choose = likeliest}; }
  static std::vector<answer_request> asked(answer_rules rules = subject::rules(), std::vector<token_id> guess = {}) {
    return {{std::move(rules), std::move(guess)}};
  }
};

TEST_CASE("prompts share what all that follow have in common") {
  std::vector<prompt_tokens> const prompts = {
      {{1, 2, 3, 4}, 3}, {{1, 2, 9, 8, 7}, 4}, {{1, 2, 9, 8, 6}, 4}, {{1, 2, 9, 8, 6}, 3}};
  CHECK(shared_starts(prompts) == std::vector<std::size_t>{2, 3, 3, 3});
  CHECK(shared_starts(std::vector<prompt_tokens>{{{1, 2}, 1}}) == std::vector<std::size_t>{0});
  CHECK(shared_starts({}).empty());
}

TEST_CASE("prompts read by forks are what they are when read alone") {
  subject const it;
  auto const prompts = chain_of_prompts();
  auto const packed = test_packed(it.cache());
  auto const reader = packed->read(it.pair.model, prompts);
  for (std::size_t const i : {0u, 2u}) {  // one is left out
    auto const alone = it.cache();
    auto const sequence = alone->open();
    matrix const expected = runtime::forward(it.pair.model, prompts[i].ids, *sequence).bottomRows(3);
    CHECK(test::relative_error(reader->hidden(i), expected) < 1e-4);
  }
}

TEST_CASE("numbers do not depend on which prompts were asked for") {
  subject const it;
  auto const prompts = chain_of_prompts();
  auto const packed = test_packed(it.cache());
  auto const all = packed->read(it.pair.model, prompts), last = packed->read(it.pair.model, prompts);
  all->hidden(0);
  all->answers(1, subject::asked());
  CHECK(all->hidden(2) == last->hidden(2));
}

TEST_CASE("an answer goes on token by token until it ends") {
  subject const it;
  auto const prompts = chain_of_prompts();
  auto const packed = test_packed(it.cache());
  auto const whole = packed->read(it.pair.model, prompts)->answers(1, subject::asked()).front();
  REQUIRE(whole.size() == 20);

  auto const sequence = it.cache();
  auto const alone = sequence->open();
  matrix hidden = runtime::forward(it.pair.model, prompts[1].ids, *alone).bottomRows(1);
  matrix scores(1, it.pair.model.config().vocabulary);
  for (token_id const expected : whole) {
    it.pair.model.logits(runtime::view_of(std::as_const(hidden)), runtime::view_of(scores));
    CHECK(likeliest(runtime::view_of(scores).row(0)) == expected);
    hidden = runtime::forward(it.pair.model, std::span(&expected, 1), *alone);
  }

  auto rules = subject::rules();
  rules.ends = [&](token_id id) { return id == whole[4]; };
  auto const ended = packed->read(it.pair.model, prompts)->answers(1, subject::asked(rules)).front();
  auto const at = std::find(whole.begin(), whole.end(), whole[4]);
  CHECK(ended == std::vector<token_id>(whole.begin(), at));

  rules = subject::rules();
  rules.is_enough = [](std::span<token_id const> so_far) { return so_far.size() == 6; };
  CHECK(packed->read(it.pair.model, prompts)->answers(1, subject::asked(rules)).front() ==
        std::vector<token_id>(whole.begin(), whole.begin() + 6));
}

TEST_CASE("answers that grow together are those that grow alone, whatever their lengths") {
  subject const it;
  auto const prompts = chain_of_prompts();
  auto const packed = test_packed(it.cache());
  std::vector<std::vector<token_id>> alone;
  std::vector<answer_request> all;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    auto rules = subject::rules();
    rules.most_tokens = std::array{7u, 0u, 20u}[i];
    alone.push_back(packed->read(it.pair.model, prompts)->answers(i, subject::asked(rules)).front());
    CHECK(alone.back().size() == rules.most_tokens);
    all.push_back({rules});
  }
  CHECK(packed->read(it.pair.model, prompts)->answers(0, all) == alone);
  auto const last_two = packed->read(it.pair.model, prompts)->answers(1, std::span(all).last(2));
  CHECK(last_two == std::vector(alone.begin() + 1, alone.end()));
}

TEST_CASE("a simulated cache says what it would token by token, whatever the guess") {
  subject it;
  auto const prompts = chain_of_prompts();
  auto simulator = it.simulated();
  std::vector<token_id> expected, read = prompts[0].ids;
  matrix scores(1, it.pair.model.config().vocabulary);
  while (expected.size() < 20) {
    matrix const hidden = it.pair.model.forward(read, simulator.get()).bottomRows(1);
    it.pair.model.logits(runtime::view_of(hidden), runtime::view_of(scores));
    expected.push_back(likeliest(runtime::view_of(scores).row(0)));
    read.push_back(expected.back());
  }
  auto const cache = test_simulated(it.simulated());
  auto const reader = cache->read(it.pair.model, prompts);
  auto half = expected;
  half[7] = (half[7] + 1) % tiny_model::vocabulary;
  auto too_long = expected;
  too_long.push_back(1);
  for (auto const& guess : {std::vector<token_id>{}, expected, half, too_long, std::vector<token_id>{1, 2, 3}})
    CHECK(reader->answers(0, subject::asked(subject::rules(), guess)).front() == expected);
  CHECK(test::relative_error(reader->hidden(0), it.pair.model.forward(prompts[0].ids, simulator.get()).bottomRows(3)) <
        1e-5);
}

TEST_CASE("choices are made row by row, in order") {
  subject const it;
  auto const ids = random_ids(300, tiny_model::vocabulary, 4);
  matrix const hidden = it.pair.model.forward(ids);
  matrix scores(300, it.pair.model.config().vocabulary);
  it.pair.model.logits(runtime::view_of(hidden), runtime::view_of(scores));
  auto const chosen = choices(it.pair.model, runtime::view_of(hidden), likeliest);
  REQUIRE(chosen.size() == 300);
  for (std::size_t i = 0; i < 300; ++i) CHECK(chosen[i] == likeliest(runtime::view_of(scores).row(i)));
}

}  // namespace
}  // namespace kvquant::tasks
