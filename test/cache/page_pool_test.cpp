#include "kvquant/cache/page_pool.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <new>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "test/support/counting_resource.hpp"
#include "test/support/thrown.hpp"

using namespace kvquant;
using namespace kvquant::test;

namespace {

std::vector<page_id> taken(page_pool& pool, std::size_t count) {
  std::vector<page_id> ids(count);
  pool.allocate(ids);
  return ids;
}

}  // namespace

TEST_CASE("a pool hands out each of its blocks once, and they do not overlap", "[cache]") {
  page_pool pool(5, 192, std::pmr::get_default_resource());
  CHECK(pool.blocks() == 5);
  CHECK(pool.block_bytes() == 192);
  CHECK(pool.slab_bytes() == 5 * 192);
  auto const ids = taken(pool, 5);
  CHECK(pool.free_blocks() == 0);
  CHECK(std::set(ids.begin(), ids.end()) == std::set<page_id>{0, 1, 2, 3, 4});
  for (page_id const id : ids) {
    CHECK(pool.block(id).data() == pool.data() + 192 * id);
    CHECK(pool.block(id).size() == 192);
    CHECK(reinterpret_cast<std::uintptr_t>(pool.block(id).data()) % page_alignment == 0);
  }
}

TEST_CASE("a block is free again when its last owner gives it back", "[cache]") {
  page_pool pool(3, 64, std::pmr::get_default_resource());
  auto const ids = taken(pool, 2);
  CHECK_FALSE(pool.is_shared(ids[0]));
  pool.share(ids);
  pool.share(std::vector{ids[0]});
  CHECK(pool.is_shared(ids[0]));
  pool.release(ids);
  CHECK(pool.is_shared(ids[0]));
  CHECK_FALSE(pool.is_shared(ids[1]));
  CHECK(pool.free_blocks() == 1);
  pool.release(ids);
  CHECK(pool.free_blocks() == 2);
  CHECK(taken(pool, 2).size() == 2);
  pool.release(std::vector{ids[0]});
  CHECK_FALSE(pool.is_shared(ids[0]));
}

TEST_CASE("a pool that lacks blocks takes none", "[cache]") {
  page_pool pool(4, 64, std::pmr::get_default_resource());
  auto const ids = taken(pool, 2);
  std::vector<page_id> more(3, 77);
  auto const refused = error_of([&] { pool.allocate(more); });
  CHECK(refused.code == errc::out_of_pages);
  CHECK_THAT(refused.text, says("3 blocks of pages are needed, 2 of 4 are free"));
  CHECK(more == std::vector<page_id>(3, 77));
  CHECK(pool.free_blocks() == 2);
  pool.release(ids);
  CHECK(taken(pool, 4).size() == 4);
}

TEST_CASE("a pool of no blocks has none to give, and nothing asks for nothing", "[cache]") {
  page_pool pool(0, 64, std::pmr::get_default_resource());
  CHECK(pool.slab_bytes() == 0);
  CHECK(pool.free_blocks() == 0);
  CHECK_NOTHROW(pool.allocate({}));
  CHECK(error_of([&] { taken(pool, 1); }).code == errc::out_of_pages);
}

TEST_CASE("counts of owners stay right over random takings, sharings and releases", "[cache]") {
  page_pool pool(20, 64, std::pmr::get_default_resource());
  std::mt19937 random(7);
  std::vector<page_id> held;  // as often as it is owned
  for (int step = 0; step < 2000; ++step) {
    std::size_t const choice = random() % 3, count = random() % 4;
    if (choice == 0 && count <= pool.free_blocks()) {
      for (page_id const id : taken(pool, count)) {
        CHECK(std::count(held.begin(), held.end(), id) == 0);
        held.push_back(id);
      }
    } else if (choice == 1 && !held.empty()) {
      page_id const id = held[random() % held.size()];
      pool.share({&id, 1});
      held.push_back(id);
    } else if (!held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      pool.release({&held.back(), 1});
      held.pop_back();
    }
    REQUIRE(pool.free_blocks() == 20 - std::set(held.begin(), held.end()).size());
  }
  for (page_id const id : std::set(held.begin(), held.end()))
    CHECK(pool.is_shared(id) == (std::count(held.begin(), held.end(), id) > 1));
}

TEST_CASE("a pool takes all its memory at the start and gives it back at the end", "[cache]") {
  counting_resource memory;
  {
    page_pool pool(9, 128, &memory);
    CHECK(memory.bytes() == pool.slab_bytes() + pool.bookkeeping_bytes());
    std::size_t const allocations = memory.allocations();
    for (int round = 0; round < 3; ++round) {
      auto const ids = taken(pool, 9);
      pool.share(ids);
      pool.release(ids);
      pool.release(ids);
    }
    CHECK(memory.allocations() == allocations);
  }
  CHECK(memory.bytes() == 0);
}

TEST_CASE("a pool without memory leaves nothing behind", "[cache]") {
  for (std::size_t const limit : {0u, 40u, 100u, 700u}) {
    counting_resource memory(limit);
    CHECK_THROWS_AS(page_pool(10, 64, &memory), std::bad_alloc);
    CHECK(memory.bytes() == 0);
  }
}

TEST_CASE("a pool refuses sizes that no memory has", "[cache]") {
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
  auto* const memory = std::pmr::null_memory_resource();
  CHECK(error_of([&] { page_pool(std::size_t{1} << 32, 64, memory); }).code == errc::bad_value);
  CHECK(error_of([&] { page_pool(2, most / 2, memory); }).code == errc::bad_value);
  CHECK(error_of([&] { page_pool(1, most, memory); }).code == errc::bad_value);
  CHECK_THAT(error_of([&] { page_pool(most, most, memory); }).text, says("too many"));
}
