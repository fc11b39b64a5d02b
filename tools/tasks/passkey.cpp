#include "tools/tasks/passkey.hpp"

#include <algorithm>
#include <utility>

#include "tools/tasks/hide.hpp"

namespace kvquant::tasks {

namespace {

constexpr std::size_t answer_tokens = 16, digits = 5;

question ask_for(haystack const& filler, std::size_t sentences, int depth, std::string const& key) {
  std::string const needle = "Keep this in mind: the secret number of the vault is " + key + ".";
  std::size_t const at = (sentences * static_cast<std::size_t>(depth) + 50) / 100;
  return {.text = "A secret number is hidden somewhere in this text. Find it and keep it in mind.\n\n" +
                  hide(filler, sentences, {{at, needle}}) + "\n\nWhat is the secret number of the vault?",
          .answer_start = "The secret number of the vault is"};
}

sample_group group_of(prompt_maker const& maker, sample_plan const& plan, std::size_t length, std::size_t index) {
  random_source random(plan.seed, "passkey/" + std::to_string(length) + "/" + std::to_string(index));
  haystack filler = plan.filler ? *plan.filler : repeated_sentences(random);
  filler.first = random.below(filler.sentences.size());
  sample_group group;
  for (int const depth : plan.depths)
    group.push_back({.task = "passkey",
                     .length = length,
                     .depth = depth,
                     .index = index,
                     .expected = {{number_not_in(filler, random, digits)}},
                     .most_tokens = answer_tokens,
                     .chance = 1.0 / 90'000});
  // As many sentences at every depth, though a number may take a token more where it stands.
  std::size_t sentences = no_most_filler;
  for (sample const& it : group) {
    auto const ask = [&](std::size_t units) { return ask_for(filler, units, *it.depth, it.expected.answers[0]); };
    sentences = std::min(sentences, most_filler(maker, ask, prompt_room(it), it.task));
  }
  for (sample& it : group) {
    it.ask = ask_for(filler, sentences, *it.depth, it.expected.answers[0]);
    it.prompt = maker.ids(it.ask);
    question told = it.ask;
    told.answer_start += " " + it.expected.answers[0];
    it.told = maker.ids(told);
  }
  return group;
}

}  // namespace

std::vector<sample_group> passkey_samples(prompt_maker const& maker, sample_plan const& plan) {
  std::vector<sample_group> groups;
  for (std::size_t const length : plan.lengths)
    for (std::size_t index = 0; index < plan.samples; ++index) groups.push_back(group_of(maker, plan, length, index));
  return groups;
}

}  // namespace kvquant::tasks
