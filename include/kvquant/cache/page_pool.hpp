#pragma once
/// \file
/// One slab of memory, cut into blocks that sequences take, share and give back.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <mutex>
#include <span>
#include <vector>

#include "kvquant/cache/page.hpp"
#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"

namespace kvquant {

/// Names one block: the pages of all KV heads that were sealed together, one behind the other.
using page_id = std::uint32_t;

/// Blocks of equal size with counts of their owners. May be used from any number of threads.
class page_pool {
 public:
  /// The slab comes from `memory`, which must outlive the pool. Throws `bad_value` for sizes that no memory has.
  page_pool(std::size_t blocks, std::size_t block_bytes, std::pmr::memory_resource* memory)
      : memory_(memory), blocks_(blocks), block_bytes_(block_bytes), owners_(memory), free_(memory) {
    require(blocks <= std::numeric_limits<page_id>::max() &&
                (blocks == 0 || block_bytes <= std::numeric_limits<std::size_t>::max() / 2 / blocks),
            errc::bad_value, "page pool: ", blocks, " blocks of ", block_bytes, " bytes are too many");
    owners_.resize(blocks);
    free_.resize(blocks);
    for (std::size_t i = 0; i < blocks; ++i) free_[i] = static_cast<page_id>(blocks - 1 - i);
    slab_ = static_cast<std::byte*>(memory_->allocate(slab_bytes(), page_alignment));
  }
  page_pool(page_pool const&) = delete;
  page_pool& operator=(page_pool const&) = delete;
  ~page_pool() { memory_->deallocate(slab_, slab_bytes(), page_alignment); }

  ///@{
  /// Of the slab that was allocated.
  std::size_t blocks() const { return blocks_; }
  std::size_t block_bytes() const { return block_bytes_; }
  std::size_t slab_bytes() const { return blocks_ * block_bytes_; }
  ///@}
  /// What the pool needs to know of its blocks.
  std::size_t bookkeeping_bytes() const { return blocks_ * (sizeof(page_id) + sizeof(std::uint32_t)); }
  /// Blocks that nobody holds.
  std::size_t free_blocks() const {
    std::lock_guard const lock(mutex_);
    return free_.size();
  }

  /// Throws `out_of_pages` unless so many blocks are free now.
  void require_free(std::size_t blocks) const {
    std::lock_guard const lock(mutex_);
    check_free(blocks);
  }

  /// Fills `ids` with blocks of one owner. Throws `out_of_pages` if there are not enough; then none is taken.
  void allocate(std::span<page_id> ids) {
    std::lock_guard const lock(mutex_);
    check_free(ids.size());
    for (page_id& id : ids) {
      id = free_.back();
      free_.pop_back();
      owners_[id] = 1;
    }
  }

  /// One owner more for each.
  void share(std::span<page_id const> ids) {
    std::lock_guard const lock(mutex_);
    for (page_id const id : ids) ++owners_[id];
  }

  /// One owner less for each; a block without any is free again.
  void release(std::span<page_id const> ids) noexcept {
    std::lock_guard const lock(mutex_);
    for (page_id const id : ids) {
      KVQ_ASSERT(owners_[id] > 0);
      if (--owners_[id] == 0) free_.push_back(id);
    }
  }

  /// Whether another than the caller, who is one, owns the block.
  bool is_shared(page_id id) const {
    std::lock_guard const lock(mutex_);
    return owners_[id] > 1;
  }

  /// The slab, [blocks, block_bytes].
  std::byte* data() const { return slab_; }
  /// One block of it.
  std::span<std::byte> block(page_id id) const { return {slab_ + id * block_bytes_, block_bytes_}; }

 private:
  void check_free(std::size_t blocks) const {
    require(blocks <= free_.size(), errc::out_of_pages, "the cache is full: ", blocks, " blocks of pages are needed, ",
            free_.size(), " of ", blocks_, " are free");
  }

  std::pmr::memory_resource* memory_;
  std::size_t blocks_, block_bytes_;
  mutable std::mutex mutex_;
  std::pmr::vector<std::uint32_t> owners_;  // [blocks]
  std::pmr::vector<page_id> free_;          // taken from the end; its capacity is `blocks`
  std::byte* slab_ = nullptr;               // [blocks, block_bytes]
};

}  // namespace kvquant
