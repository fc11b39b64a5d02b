#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#include "backends/cpu/thread_pool.hpp"
#include "test/contract/answer.hpp"
#include "test/contract/attention_contract.hpp"
#include "test/contract/problems.hpp"

// Results are the same bits however the work is cut, batched and shared out.

namespace {

using namespace kvquant;
using namespace kvquant::contract;

/// Two layers, sinks, pages and a tail.
problem some_problem(std::size_t tokens = 300) {
  return make_problem({.shape = make_shape(2, 3, 64, {.rotary_dim = 32}, 2), .sinks = 3}, tokens);
}

/// Sequences of `lengths` tokens with queries for their last ones, asked in one call and each alone.
void check_batch(candidate const& with, problem const& what, std::vector<std::size_t> const& lengths,
                 std::size_t most_queries) {
  CAPTURE(with.spec, lengths.size(), most_queries);
  auto const held = with.make(what, lengths.size() * (what.tokens() + page_tokens));
  std::vector<filled> sequences;
  std::vector<float_matrix> queries;
  std::vector<answer> answers;
  for (std::size_t const length : lengths) {
    sequences.emplace_back(what, *held, 0, length);
    queries.push_back(make_queries(what, std::min(most_queries, length), 100 + sequences.size()));
    answers.push_back(room_for_answer(what, queries.back().rows));
  }
  std::vector<attend_args> batch;
  for (std::size_t i = 0; i < lengths.size(); ++i)
    batch.push_back(make_args(held->view(sequences[i].tokens, 0), queries[i], answers[i],
                              {.window = i % 3 == 2 ? std::size_t{40} : 0}));
  inline_executor here;
  held->attend(0, batch, here);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    CAPTURE(i);
    CHECK(answers[i] == sequences[i].attend(queries[i], {.window = batch[i].window}));
  }
}

}  // namespace

TEST_CASE("a query's row has the same bits alone, in a chunk, and in a chunk of several blocks", "[contract]") {
  auto const what = some_problem();
  std::size_t const window = GENERATE(as<std::size_t>(), 0, 50);
  if (!under_test().bounds.same_rows) return;
  for (candidate const& with : under_test().candidates) {
    CAPTURE(with.spec, window);
    auto const held = with.make(what, what.tokens());
    filled const tokens(what, *held);
    auto const q = make_queries(what, 140);
    auto const all = tokens.attend(q, {.window = window});
    for (std::size_t const rows : {1u, 2u, 63u, 64u, 65u}) {
      CAPTURE(rows);
      CHECK(tokens.attend(q.view().middle_rows(140 - rows, rows), {.window = window}) == last_rows(all, rows));
    }
  }
}

TEST_CASE("sequences of a batch have the bits they have alone", "[contract]") {
  for (candidate const& with : under_test().candidates) check_batch(with, some_problem(), {1, 300, 64, 3, 67, 131}, 5);
}

TEST_CASE("a batch too large for one round of work has the bits of its sequences alone", "[contract]") {
  auto const what = make_problem({.shape = make_shape(2, 8, 256)}, 70);
  check_batch(under_test().candidates.front(), what, std::vector<std::size_t>(20, 70), 64);
}

TEST_CASE("any number of workers gives the same bits", "[contract]") {
  auto const what = some_problem();
  for (candidate const& with : under_test().candidates) {
    auto const held = with.make(what, what.tokens());
    filled const tokens(what, *held);
    auto const q = make_queries(what, 70);
    auto const alone = tokens.attend(q);
    for (int const workers : {1, 2, 4}) {
      CAPTURE(with.spec, workers);
      cpu::thread_pool pool(workers);
      CHECK(tokens.attend(q, {}, 0, pool) == alone);
    }
  }
}

TEST_CASE("many threads may ask at once", "[contract]") {
  auto const what = some_problem();
  auto const held = under_test().candidates.front().make(what, what.tokens());
  filled const tokens(what, *held);
  auto const q = make_queries(what, 20);
  std::array<answer, 2> const expected{tokens.attend(q, {}, 0), tokens.attend(q, {}, 1)};
  REQUIRE_FALSE(expected[0] == expected[1]);
  std::array<std::size_t, 4> wrong{};
  std::vector<std::thread> threads;
  for (std::size_t id = 0; id < wrong.size(); ++id)
    threads.emplace_back([&, id] {
      for (int round = 0; round < 10; ++round)
        wrong[id] += tokens.attend(q, {}, static_cast<int>(id % 2)) == expected[id % 2] ? 0 : 1;
    });
  for (std::thread& it : threads) it.join();
  CHECK(wrong == std::array<std::size_t, 4>{});
}

TEST_CASE("m and l need not be asked for, and asking changes nothing", "[contract]") {
  auto const what = some_problem();
  auto const held = under_test().candidates.front().make(what, what.tokens());
  filled const tokens(what, *held);
  auto const q = make_queries(what, 3);
  auto to = room_for_answer(what, 3);
  auto args = make_args(held->view(tokens.tokens, 0), q, to);
  args.score_max = args.score_sum = {};
  inline_executor here;
  held->attend(0, {&args, 1}, here);
  CHECK(to.out.values == tokens.attend(q).out.values);
}
