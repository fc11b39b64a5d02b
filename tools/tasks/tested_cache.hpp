#pragma once
/// \file
/// A model reading prompts and going on with them, with one kind of cache.

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvquant/engine.hpp"
#include "runtime/model.hpp"
#include "runtime/simulation/simulator.hpp"

namespace kvquant::tasks {

using runtime::token_id;

struct prompt_tokens {
  std::vector<token_id> ids;
  std::size_t first = 0;  ///< hidden states are wanted from here on
};

/// How an answer goes on, and where it ends. Each function is called once a token, in order.
struct answer_rules {
  std::size_t most_tokens = 0;
  std::function<token_id(std::span<float> scores)> choose;
  std::function<bool(token_id)> ends{};                               ///< is no part of the answer
  std::function<bool(std::span<token_id const> so_far)> is_enough{};  ///< may be empty
};

/// What is wanted behind a prompt. `guess`, another cache's answer say, may save time and changes nothing.
struct answer_request {
  answer_rules rules;
  std::vector<token_id> guess{};
};

/// Prompts being read, each once at most and in rising order.
class prompt_reader {
 public:
  virtual ~prompt_reader() = default;
  /// The hidden states of a prompt from its `first` token on.
  virtual runtime::matrix hidden(std::size_t prompt) = 0;
  /// What the model says behind the prompts from `first` on, one for each request.
  virtual std::vector<std::vector<token_id>> answers(std::size_t first, std::span<answer_request const> requests) = 0;
};

class tested_cache {
 public:
  virtual ~tested_cache() = default;
  /// `prompts` and the model must outlive the reader. The numbers are the same whichever of the prompts are asked for.
  virtual std::unique_ptr<prompt_reader> read(runtime::model const& model, std::span<prompt_tokens const> prompts) = 0;
};

/// Packed pages. What prompts have in common is read once, and sequences are forked where they part. Answers grow
/// together, a token of each at a time.
std::unique_ptr<tested_cache> test_packed(std::unique_ptr<engine> cache);
/// Keys and values rounded where they arise. Each prompt is read as a whole, and once more for every token in which the
/// guess is wrong.
std::unique_ptr<tested_cache> test_simulated(std::unique_ptr<runtime::simulator> cache);

/// For each prompt, the tokens at its start that all prompts from it on have in common, none of them from `first` on.
std::vector<std::size_t> shared_starts(std::span<prompt_tokens const> prompts);

/// What `choose` makes of each row of hidden states, one after another.
std::vector<token_id> choices(runtime::model const& model, view2d<float const> hidden,
                              std::function<token_id(std::span<float> scores)> const& choose);

}  // namespace kvquant::tasks
