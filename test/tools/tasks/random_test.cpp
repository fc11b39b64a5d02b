#include "tools/tasks/random.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <set>

#include "tools/tasks/prose.hpp"

namespace kvquant::tasks {
namespace {

TEST_CASE("the numbers are those of SplitMix64, whatever the machine") {
  // A source without a name goes on from its seed's first number and FNV-1a's offset.
  random_source here(7, "");
  std::uint64_t state = 7 + 0x9e3779b97f4a7c15u;
  auto const mix = [](std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  };
  state = mix(state) ^ 0xcbf29ce484222325u;
  for (int i = 0; i < 3; ++i) CHECK(here.next() == mix(state += 0x9e3779b97f4a7c15u));
}

TEST_CASE("sources differ by seed and by name") {
  CHECK(random_source(1, "a").next() == random_source(1, "a").next());
  CHECK(random_source(1, "a").next() != random_source(2, "a").next());
  CHECK(random_source(1, "a").next() != random_source(1, "b").next());
}

TEST_CASE("every number below a bound comes about as often") {
  random_source random(3, "dice");
  std::array<int, 6> seen{};
  for (int i = 0; i < 6000; ++i) ++seen.at(random.below(6));
  for (int const times : seen) CHECK(std::abs(times - 1000) < 150);  // 5 standard deviations
}

TEST_CASE("shuffling keeps what is there, in another order") {
  random_source random(4, "cards");
  std::vector<int> cards(50);
  for (int i = 0; i < 50; ++i) cards[static_cast<std::size_t>(i)] = i;
  auto shuffled = cards;
  random.shuffle(shuffled);
  CHECK(shuffled != cards);
  std::sort(shuffled.begin(), shuffled.end());
  CHECK(shuffled == cards);
}

TEST_CASE("words are different and of one kind") {
  random_source random(5, "words");
  std::size_t const count = GENERATE(as<std::size_t>(), 10, 1000, 20000);
  auto const words = distinct_words(random, count);
  CHECK(std::set<std::string>(words.begin(), words.end()).size() == count);
  auto const parts = [](std::string const& word) { return std::count(word.begin(), word.end(), '-'); };
  CHECK(std::all_of(words.begin(), words.end(), [&](auto const& it) { return parts(it) == parts(words[0]); }));
  CHECK(parts(words[0]) == (count == 10 ? 0 : count == 1000 ? 1 : 2));
}

TEST_CASE("sentences end at stops and at lines, not inside numbers") {
  CHECK(sentences_of("One. Two is 3.14 wide!\nA title\n\nLast").sentences ==
        std::vector<std::string>{"One.", "Two is 3.14 wide!", "A title", "Last"});
}

}  // namespace
}  // namespace kvquant::tasks
