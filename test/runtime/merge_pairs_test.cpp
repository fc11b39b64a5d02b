/// \file
/// The merge loop against one that looks at every pair each time.

#include "runtime/tokenizer/merge_pairs.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

using kvquant::runtime::join_result;
using kvquant::runtime::merge_pairs;
using kvquant::runtime::token_id;

namespace {

struct piece {
  std::uint32_t begin, end;
  token_id id;
  bool operator==(piece const&) const = default;
};

std::ostream& operator<<(std::ostream& out, piece const& p) {
  return out << '[' << p.begin << ',' << p.end << ")=" << p.id;
}

using pieces = std::vector<piece>;

template <class Join>
pieces merged(std::vector<token_id> symbols, Join const& join) {
  pieces out;
  merge_pairs(
      symbols, [&](auto left, auto right, auto end) { return join(symbols[left], symbols[right], left, right, end); },
      [&](std::uint32_t begin, std::uint32_t end, token_id id) {
        out.push_back({begin, end, id});
      });
  return out;
}

/// The rule itself: again and again join the first of the cheapest pairs.
template <class Join>
pieces merged_naively(std::vector<token_id> const& symbols, Join const& join) {
  pieces all;
  for (std::uint32_t i = 0; i < symbols.size(); ++i) all.push_back({i, i + 1, symbols[i]});
  while (true) {
    decltype(join(0, 0, 0u, 0u, 0u)) best;
    std::size_t where = 0;
    for (std::size_t i = 0; i + 1 < all.size(); ++i) {
      auto const made = join(all[i].id, all[i + 1].id, all[i].begin, all[i + 1].begin, all[i + 1].end);
      if (!made || (best && !(made->cost < best->cost))) continue;
      best = made;
      where = i;
    }
    if (!best) return all;
    all[where] = {all[where].begin, all[where + 1].end, best->id};
    all.erase(all.begin() + static_cast<std::ptrdiff_t>(where) + 1);
  }
}

std::vector<token_id> random_symbols(std::mt19937& random, std::size_t most, std::uint32_t kinds) {
  std::vector<token_id> symbols(random() % (most + 1));
  for (token_id& id : symbols) id = static_cast<token_id>(random() % kinds);
  return symbols;
}

}  // namespace

TEST_CASE("No units and one unit stay as they are", "[tokenizer]") {
  auto const never_asked = [](token_id, token_id, std::uint32_t, std::uint32_t, std::uint32_t) {
    FAIL("there is no pair");
    return std::optional<join_result<int>>{};
  };
  CHECK(merged({}, never_asked).empty());
  CHECK(merged({7}, never_asked) == pieces{{0, 1, 7}});
}

TEST_CASE("Units that make nothing are handed out in order, negative ids too", "[tokenizer]") {
  auto const nothing = [](auto...) { return std::optional<join_result<int>>{}; };
  CHECK(merged({3, -1, 2}, nothing) == pieces{{0, 1, 3}, {1, 2, -1}, {2, 3, 2}});
}

TEST_CASE("Merging equals the naive loop where a rule looks at symbols", "[tokenizer]") {
  std::mt19937 random(11);
  for (int rules = 0; rules < 60; ++rules) {
    // Costs from a small range, so that many are equal.
    std::map<std::pair<token_id, token_id>, join_result<std::uint32_t>> table;
    for (int i = 0; i < 30; ++i)
      table[{static_cast<token_id>(random() % 8), static_cast<token_id>(random() % 8)}] = {
          static_cast<std::uint32_t>(random() % 6), static_cast<token_id>(random() % 8)};
    auto const join = [&](token_id left, token_id right, auto...) {
      auto const found = table.find({left, right});
      return found == table.end() ? std::nullopt : std::optional(found->second);
    };
    for (int i = 0; i < 40; ++i) {
      auto const symbols = random_symbols(random, 50, 3);
      REQUIRE(merged(symbols, join) == merged_naively(symbols, join));
    }
  }
}

TEST_CASE("Merging equals the naive loop where a rule looks at units", "[tokenizer]") {
  std::mt19937 random(12);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  std::vector<double> const costs{-infinity, -2, -0.5, 0, 0, 1.5, infinity};
  for (int rules = 0; rules < 300; ++rules) {
    std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>, std::optional<join_result<double>>> drawn;
    auto const join = [&](token_id, token_id, std::uint32_t left, std::uint32_t right, std::uint32_t end) {
      auto const [at, fresh] = drawn.try_emplace({left, right, end});
      if (fresh && random() % 3 != 0)
        at->second = join_result<double>{costs[random() % costs.size()], static_cast<token_id>(100 + random() % 9)};
      return at->second;
    };
    auto const symbols = random_symbols(random, 40, 5);
    auto const got = merged(symbols, join);
    REQUIRE(got == merged_naively(symbols, join));
  }
}

TEST_CASE("A rule is asked about symbols that stand side by side, and a number of times in proportion to the units",
          "[tokenizer]") {
  constexpr std::uint32_t count = 100'000;
  std::vector<token_id> symbols(count, 0);
  std::size_t asked = 0, misplaced = 0;
  std::uint32_t next = 0;
  merge_pairs(
      symbols,
      [&](std::uint32_t left, std::uint32_t right, std::uint32_t end) {
        ++asked;
        misplaced += !(left < right && right < end && end <= count);
        return std::optional(join_result<std::uint32_t>{end - left, 0});
      },
      [&](std::uint32_t begin, std::uint32_t end, token_id) {
        misplaced += begin != next;
        next = end;
      });
  CHECK(next == count);
  CHECK(misplaced == 0);
  CHECK(asked <= 3 * std::size_t{count});  // one for each first pair, at most two after each of the joins
}
