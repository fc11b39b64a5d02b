#include "kvquant/cache/huge_pages.hpp"

#include <catch2/catch.hpp>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

namespace kvquant {
namespace {

/// Remembers what is asked for and gives it.
class recorder final : public std::pmr::memory_resource {
 public:
  struct request {
    std::size_t bytes, alignment;
    bool operator==(request const&) const = default;
  };
  std::vector<request> asked, returned;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    asked.push_back({bytes, alignment});
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* memory, std::size_t bytes, std::size_t alignment) override {
    returned.push_back({bytes, alignment});
    std::pmr::new_delete_resource()->deallocate(memory, bytes, alignment);
  }
  bool do_is_equal(std::pmr::memory_resource const& other) const noexcept override { return this == &other; }
};

constexpr std::size_t huge = huge_page_resource::huge_page_bytes;

TEST_CASE("huge pages: large memory is whole pages, small memory is left alone") {
  recorder upstream;
  huge_page_resource memory(&upstream);
  std::vector<recorder::request> const requests = {{100, 8}, {huge - 1, 64}, {huge, 64}, {3 * huge + 1, 4 * huge}};
  std::vector<recorder::request> const passed_on = {{100, 8}, {huge - 1, 64}, {huge, huge}, {4 * huge, 4 * huge}};
  for (auto const& [bytes, alignment] : requests) {
    auto* const bytes_of = static_cast<std::byte*>(memory.allocate(bytes, alignment));
    REQUIRE(reinterpret_cast<std::uintptr_t>(bytes_of) % alignment == 0);
    bytes_of[0] = bytes_of[bytes - 1] = std::byte{1};
    memory.deallocate(bytes_of, bytes, alignment);
  }
  REQUIRE(upstream.asked == passed_on);
  REQUIRE(upstream.returned == passed_on);
}

TEST_CASE("huge pages: a size beyond all memory is refused") {
  huge_page_resource memory;
  REQUIRE_THROWS_AS(memory.allocate(std::numeric_limits<std::size_t>::max() - 5, 64), std::bad_alloc);
}

TEST_CASE("huge pages: resources of one upstream are equal") {
  recorder one, other;
  REQUIRE(huge_page_resource(&one).is_equal(huge_page_resource(&one)));
  REQUIRE_FALSE(huge_page_resource(&one).is_equal(huge_page_resource(&other)));
  REQUIRE_FALSE(huge_page_resource(&one).is_equal(one));
  REQUIRE(huge_pages() == huge_pages());
}

}  // namespace
}  // namespace kvquant
