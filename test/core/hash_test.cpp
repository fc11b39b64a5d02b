#include "kvquant/core/hash.hpp"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace {

using namespace kvquant;
using namespace std::string_view_literals;

constexpr std::uint64_t hash_of(std::string_view bytes) {
  fingerprint hash;
  hash.add(bytes);
  return hash.value();
}

std::string random_bytes(std::size_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

}  // namespace

TEST_CASE("the fingerprint agrees with the published vectors of FNV-1a", "[core]") {
  // Landon Curt Noll's test suite (test_fnv.c), 64 bits.
  constexpr std::array<std::pair<std::string_view, std::uint64_t>, 12> vectors{
      {{"", 0xcbf29ce484222325},
       {"a", 0xaf63dc4c8601ec8c},
       {"b", 0xaf63df4c8601f1a5},
       {"f", 0xaf63db4c8601ead9},
       {"fo", 0x08985907b541d342},
       {"foo", 0xdcb27518fed9d577},
       {"foob", 0xdd120e790c2512af},
       {"fooba", 0xcac165afa2fef40a},
       {"foobar", 0x85944171f73967e8},
       {"\0"sv, 0xaf63bd4c8601b7df},
       {"\0\0\0\0"sv, 0x4d25767f9dce13f5},
       {"chongo was here!\n", 0x46810940eff5f915}}};
  for (auto const& [bytes, expected] : vectors) {
    CAPTURE(bytes);
    CHECK(hash_of(bytes) == expected);
  }
  STATIC_REQUIRE(hash_of("foobar") == 0x85944171f73967e8);
}

TEST_CASE("bytes above 127 are hashed as bytes, whatever the sign of char", "[core]") {
  CHECK(hash_of("\xff\x00\x00\x01"sv) == 0x6961196491cc682d);
}

TEST_CASE("the fingerprint does not depend on how the bytes are cut into calls", "[core]") {
  std::string const bytes = random_bytes(1000, 7);
  std::mt19937_64 random(8);
  for (int trial = 0; trial < 50; ++trial) {
    fingerprint hash;
    for (std::size_t begin = 0; begin < bytes.size();) {
      std::size_t const count = std::min<std::size_t>(random() % 97, bytes.size() - begin);
      std::string_view const piece = std::string_view(bytes).substr(begin, count);
      if (random() % 2 == 0)
        hash.add(piece);
      else
        hash.add(std::as_bytes(std::span(piece)));
      begin += count;
    }
    REQUIRE(hash.value() == hash_of(bytes));
  }
}

TEST_CASE("any one changed bit and any cut changes the fingerprint", "[core]") {
  std::string bytes = random_bytes(64, 9);
  std::set<std::uint64_t> seen{hash_of(bytes)};
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string changed = bytes;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << bit % 8));
    seen.insert(hash_of(changed));
  }
  for (std::size_t length = 0; length < bytes.size(); ++length) seen.insert(hash_of(bytes.substr(0, length)));
  CHECK(seen.size() == 1 + 8 * 64 + 64);
}

TEST_CASE("the hexadecimal form has 16 digits, leading zeros included", "[core]") {
  fingerprint hash;
  CHECK(hash.hex() == "cbf29ce484222325");
  hash.add("fo");
  CHECK(hash.hex() == "08985907b541d342");
}
