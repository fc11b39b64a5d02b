#pragma once
/// \file
/// One sequence's tokens: which pages are its own, and what it holds exactly.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <memory_resource>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/cache/page_pool.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/view.hpp"

namespace kvquant {

/// What attention reads of one layer of a sequence. Tokens stand in this order, at positions 0 … tokens − 1: sinks, the
/// tokens of the pages, the tail. Valid until the sequence changes.
struct layer_view {
  view2d<half const> sink_k, sink_v;  ///< [sinks, kv_channels], keys before RoPE
  std::byte const* slab = nullptr;    ///< [blocks of the pool, kv_heads, page_bytes]
  std::size_t page_bytes = 0;         ///< of one head's page
  std::span<page_id const> pages;     ///< [ceil(sealed / page_tokens) − gone]
  std::size_t sealed = 0;             ///< tokens in pages; the last page may be read in part
  view2d<half const> tail_k, tail_v;  ///< [tail, kv_channels]
  /// Of a layer whose queries see the latest tokens alone: how many, their own included, sinks or not. 0: all.
  std::size_t window = 0;
  /// Pages that were given back, the first ones: no query sees them any more.
  std::size_t gone = 0;

  /// Of this layer.
  std::size_t tokens() const { return sink_k.rows + sealed + tail_k.rows; }
  /// The first token behind the sinks that is still there.
  std::size_t first_kept() const { return sink_k.rows + gone * page_tokens; }
  /// The page of a KV head. In place of one that is gone another: kernels may touch what they will not use.
  std::span<std::byte const> page(std::size_t index, std::size_t kv_head, std::size_t kv_heads) const {
    page_id const id = pages[index - std::min(index, gone)];
    return {slab + (id * kv_heads + kv_head) * page_bytes, page_bytes};
  }
};

/// Made by a `kv_cache`, and used through it alone. Gives its pages back when it goes; may outlive the cache. One
/// thread at a time may use a sequence, several may use several.
class sequence {
 public:
  /// What is moved from holds nothing.
  sequence(sequence&& other) noexcept = default;
  /// Gives back what it held.
  sequence& operator=(sequence&& other) noexcept {
    if (this != &other) {
      std::destroy_at(this);  // members stay with the memory that they came from
      std::construct_at(this, std::move(other));
    }
    return *this;
  }
  /// Gives its pages back.
  ~sequence() { give_back(); }

  /// Of the layer that has most: all have as many between steps.
  std::size_t tokens() const {
    std::size_t most = 0;
    for (layer_state const& it : layers_) most = std::max(most, it.tokens);
    return most;
  }
  /// Of one layer: more than others have in the middle of a step. Throws `std::out_of_range`.
  std::size_t tokens(int layer) const { return layers_.at(static_cast<std::size_t>(layer)).tokens; }

 private:
  template <class S, class Layout>
  friend class kv_cache;

  struct layer_state {
    explicit layer_state(std::pmr::memory_resource* memory) : pages(memory) {}
    std::size_t tokens = 0;           ///< sinks, sealed and tail
    std::size_t sealed = 0;           ///< in pages; no multiple of page_tokens: the last page is re-opened
    std::size_t gone = 0;             ///< pages that were given back, the first ones, but never all
    std::pmr::vector<page_id> pages;  ///< those in use, then those held in reserve
    std::size_t pages_in_use() const { return (sealed + page_tokens - 1) / page_tokens - gone; }
    std::size_t reopened() const { return sealed % page_tokens; }
  };

  explicit sequence(std::shared_ptr<page_pool> pool, std::pmr::memory_resource* memory)
      : pool_(std::move(pool)), exact_(memory) {}

  void give_back() noexcept {
    if (!pool_) return;
    for (layer_state& it : layers_) pool_->release(it.pages);
    layers_.clear();
    pool_.reset();
  }

  std::shared_ptr<page_pool> pool_;
  std::vector<layer_state> layers_;
  std::pmr::vector<half> exact_;  // [layers, {k, v}, sinks + tail capacity, kv_channels]
};

}  // namespace kvquant
