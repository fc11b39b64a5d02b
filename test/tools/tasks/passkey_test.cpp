#include "tools/tasks/passkey.hpp"

#include <catch2/catch.hpp>
#include <cmath>

#include "test/support/thrown.hpp"
#include "test/tools/tasks/generated.hpp"

namespace kvquant::tasks {
namespace {

using test::byte_maker, test::count, test::error_of, test::says;

sample_plan const plan{.lengths = {700, 3000}, .samples = 2, .seed = 5, .depths = {0, 30, 100}};

TEST_CASE("passkey: lengths are met, the number is there once and where it should be") {
  byte_maker const bytes;
  auto const groups = passkey_samples(bytes.maker, plan);
  REQUIRE(groups.size() == 4);
  for (sample_group const& group : groups) {
    REQUIRE(group.size() == 3);
    for (sample const& it : group) {
      INFO(it.id());
      std::string const text = bytes.text(it), key = it.expected.answers.at(0);
      CHECK(it.prompt.size() + it.most_tokens <= it.length);
      CHECK(it.prompt.size() + it.most_tokens + 50 > it.length);  // another sentence would be too much
      CHECK(key.size() == 5);
      CHECK(count(text, key) == 1);
      auto const begin = static_cast<double>(text.find("\n\n")), end = static_cast<double>(text.rfind("\n\n"));
      double const place = (static_cast<double>(text.find(key)) - begin) / (end - begin);
      CHECK(std::abs(place - *it.depth / 100.0) < 90 / (end - begin));  // a sentence, and the needle
      CHECK(bytes.words.decode(it.told) == text + " " + key);
    }
    // All depths have one filler: what they share ends where the earlier number stands.
    CHECK(common_start(group[1].prompt, group[2].prompt) > common_start(group[0].prompt, group[1].prompt));
  }
}

TEST_CASE("passkey: samples depend on the seed alone") {
  byte_maker const bytes;
  auto const once = passkey_samples(bytes.maker, plan), again = passkey_samples(bytes.maker, plan);
  auto other_plan = plan;
  other_plan.seed = 6;
  auto const other = passkey_samples(bytes.maker, other_plan);
  for (std::size_t i = 0; i < once.size(); ++i) {
    CHECK(test::same_prompts(once[i], again[i]));
    CHECK_FALSE(test::same_prompts(once[i], other[i]));
  }
  CHECK_FALSE(test::same_prompts(once[0], once[1]));
}

TEST_CASE("passkey: a text of the user's is the filler, and does not hold the number") {
  byte_maker const bytes;
  auto own = plan;
  own.filler = sentences_of("My sentence has 12345 in it. Another one.");
  for (sample_group const& group : passkey_samples(bytes.maker, own))
    for (sample const& it : group) {
      CHECK(count(bytes.text(it), "My sentence has 12345 in it.") > 3);
      CHECK(it.expected.answers.at(0) != "12345");
    }
}

TEST_CASE("passkey: a length without room is refused") {
  byte_maker const bytes;
  auto const refused = [&](std::size_t length) {
    return error_of([&] { passkey_samples(bytes.maker, {.lengths = {length}, .depths = {0}}); });
  };
  CHECK_THAT(refused(10).text, says("passkey: a length of 10, expected more than the 16 tokens"));
  CHECK_THAT(refused(100).text, says("passkey: a length that leaves 84 tokens to the prompt, expected "));
}

}  // namespace
}  // namespace kvquant::tasks
