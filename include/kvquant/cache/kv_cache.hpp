#pragma once
/// \file
/// The paged cache: many sequences of one model, all layers, packed.
///
/// The first `sinks` tokens of a sequence stay exact (binary16), and so do the latest ones, the tail. When the tail
/// holds a page more than `recent_pages`, its oldest page is sealed: quantized, packed, never changed again. A token's
/// codes depend on the token alone, and a page's slots on its 64 tokens, so bytes are the same however the tokens came.
///
/// Layers of a model that see a window alone give back the pages that lie behind it, sinks aside, as tokens come.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvquant/cache/appender.hpp"
#include "kvquant/cache/bytes.hpp"
#include "kvquant/cache/huge_pages.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/cache/page_pool.hpp"
#include "kvquant/cache/page_sealer.hpp"
#include "kvquant/cache/sequence.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/executor.hpp"

namespace kvquant {

/// How a cache is made; what is not given comes from the artifact.
struct cache_options {
  /// Tokens that the pages have room for, all sequences together; rounded up to whole pages. Sinks and tails come on
  /// top.
  std::size_t max_tokens = 0;
  std::optional<int> sinks{};  ///< exact tokens at the start; the artifact's if not given
  int recent_pages = 0;        ///< whole pages of the latest tokens that stay exact, beside the one being filled
  /// Sequences at a time, if they are known: layers that see a window alone get pages for so many windows instead of
  /// for `max_tokens`, and all of them together those of one prompt, which has to come by `attend_as_decoded`. 0: not
  /// known.
  std::size_t max_sequences = 0;
  /// Tokens by which `truncate` can go back at any time: layers that see a window alone keep as many more.
  int rewind_tokens = 64;
  /// For all that grows with tokens; null: what the pages' layout names as its `memory`, or else huge pages.
  std::pmr::memory_resource* memory = nullptr;
  /// Of a backend whose device stores and seals what is appended, a `cudaStream_t` say: `append` only asks for it
  /// there, in order with whatever else is asked (see `kv_cache::wait`). Null: `append` returns when all is done.
  void* queue = nullptr;
};

namespace detail {
template <class Layout>
std::pmr::memory_resource* memory_for(std::pmr::memory_resource* chosen) {
  if (chosen != nullptr) return chosen;
  if constexpr (requires { Layout::memory(); })
    return Layout::memory();
  else
    return huge_pages();
}
}  // namespace detail

/// `Layout`: a `PageLayout` for `S`, which may name a `sealer` or an `appender` of its own. Sequences may be opened,
/// used and closed from different threads.
template <class S, class Layout>
class kv_cache {
 public:
  /// Formats of keys and values.
  using spec_type = S;
  /// Of the backend.
  using layout_type = Layout;
  static_assert(PackedSpec<S> && PageLayout<Layout> && std::is_same_v<typename Layout::spec_type, S>);
  /// What stores and seals.
  using appender_type = appender_for<Layout>;
  static_assert(Appender<appender_type, S>);

  /// Throws `unsupported` naming what a cache cannot hold (keys quantized after RoPE), `bad_shape` or
  /// `bad_value` for sizes that cannot be.
  kv_cache(artifact<S> const& it, cache_options const& options);

  /// Of the artifact.
  artifact_info const& info() const { return info_; }
  /// Of a head's pages, without widths of channels.
  page_geometry const& geometry() const { return geometry_; }
  /// Exact tokens at the start of a sequence.
  std::size_t sinks() const { return sinks_; }
  /// See `cache_options`.
  std::size_t recent_pages() const { return tail_capacity_ / page_tokens - 1; }
  /// Of the model.
  std::size_t layers() const { return appender_.layers(); }
  /// Of the model.
  std::size_t kv_heads() const { return kv_heads_; }
  /// kv_heads · head_dim
  std::size_t kv_channels() const { return kv_heads_ * geometry_.head_dim; }
  /// The quantizers of a layer: what a code means.
  page_sealer<S> const& layer(int index) const { return appender_.quantizers(index); }

  /// An empty sequence. With room in its page tables for `expected_tokens`, appending up to them allocates nothing.
  sequence open(std::size_t expected_tokens = 0);
  /// Another with the same tokens: it shares the pages, and copies what is exact. What `reserve` took stays with `of`;
  /// a re-opened page that is shared from now on needs a block more when it is sealed again.
  sequence fork(sequence const& of);

  /// Appends tokens to one layer: `k` (before RoPE) and `v` [tokens, kv_channels], of float, half or bfloat16. Throws
  /// `bad_value` naming token and channel of what binary16 cannot hold, `out_of_pages` if the pages do not suffice;
  /// then the sequence is as it was.
  template <class T>
  void append(sequence& to, int layer, view2d<T> k, view2d<T> v, executor_ref executor);
  /// The same on the calling thread.
  template <class T>
  void append(sequence& to, int layer, view2d<T> k, view2d<T> v) {
    inline_executor here;
    append(to, layer, k, v, here);
  }

  /// Does all that `append` could refuse: checks the tokens, and takes the pages that they will need. Gives back before
  /// those that lie behind a layer's window.
  template <class T>
  void prepare(sequence& to, int layer, view2d<T> k, view2d<T> v);
  /// Until what `append` has asked for is done, and the host may read a `view`. Throws what could not be checked
  /// before.
  void wait() const { appender_.wait(); }
  /// Tokens that can be appended to a layer until the next one seals a page.
  std::size_t room_before_seal(sequence const& of, int layer) const {
    layer_state const& it = state(of, layer);
    return sinks_ - sinks_of(it) + tail_capacity_ - 1 - it.reopened() - tail_of(it);
  }

  /// Takes the pages that the next `tokens` of every layer need, so that appending them cannot run out. Throws
  /// `out_of_pages`; then the sequence is as it was.
  void reserve(sequence& of, std::size_t tokens);

  /// Cuts every layer to its first `tokens`. Where that falls inside a sealed page the page is re-opened: its first
  /// tokens go on being read from it, quantized, and when it is full again its codes are kept and its residuals compete
  /// anew with those of the new tokens. Appending the same tokens gives the same bytes. Throws `bad_value` if there are
  /// fewer tokens, or if a layer sees a window of which pages have been given back (see `rewind_tokens`).
  void truncate(sequence& of, std::size_t tokens);

  /// Forgets tokens [first, first + count) of every layer and moves those behind to the front: pages hold keys before
  /// RoPE, so nothing is quantized again. Throws `bad_value` unless the range is one of whole sealed pages, or if a
  /// layer's window would reach back to pages that have been given back.
  void drop(sequence& of, std::size_t first, std::size_t count);

  /// What attention reads of a layer. Valid until the sequence changes; on a device after `wait`.
  layer_view view(sequence const& of, int layer) const;

  /// Of one sequence, as if no other shared its pages; `tables` included.
  byte_report bytes(sequence const& of) const;
  /// Of the pages, all taken together, and the tables. Sequences' sinks, tails and page tables are not in it.
  byte_report bytes() const;
  /// Of all that was sealed since the cache was made, of formats that are `by_channel`. A rate far above that of the
  /// calibration's text says that the model is used on what calibration has not seen.
  clamp_counts clamps() const {
    wait();
    return appender_.clamps();
  }
  /// Numbers that a sequence stands for: keys and values of all layers, as `byte_report::bits_per_element` asks.
  std::size_t elements(sequence const& of) const { return 2 * of.tokens() * layers() * kv_channels(); }
  /// Blocks that no sequence holds; a block has 64 tokens of one layer.
  std::size_t free_blocks() const { return pool_->free_blocks(); }

  /// A page of a sequence as anyone may read it. `out` is resized.
  void read_page(sequence const& of, int layer, std::size_t page, std::size_t kv_head, canonical_page<S>& out) const;

  /// Puts together a sequence from its parts, each layer alike: `exact(layer, is_tail, k, v)` fills the rows of the
  /// sinks and of the tail, [rows, kv_channels], `page(layer, index, kv_head, canonical)` each page; layers that see a
  /// window alone lack the first `gone`. Throws `out_of_pages`, and `bad_value` for numbers of tokens or pages that no
  /// sequence of this cache has.
  template <class Exact, class Page>
  sequence assemble(std::size_t tokens, std::size_t sealed, Exact&& exact, Page&& page, std::size_t gone = 0);

 private:
  using layer_state = sequence::layer_state;
  enum class side { k, v };

  layer_state& state(sequence& of, int layer) const;
  layer_state const& state(sequence const& of, int layer) const { return state(const_cast<sequence&>(of), layer); }
  void require_own(sequence const& of) const;

  std::size_t sinks_of(layer_state const& it) const { return std::min(it.tokens, sinks_); }
  std::size_t tail_of(layer_state const& it) const { return it.tokens - sinks_of(it) - it.sealed; }
  /// Pages that `tokens` more complete.
  std::size_t pages_sealed_by(layer_state const& it, std::size_t tokens) const;
  /// Makes `it.pages` hold the blocks that `seals` more pages need. A re-opened page that no other sequence reads is
  /// sealed in its place.
  void take_pages(layer_state& it, std::size_t seals);
  /// Gives back the pages of a layer that no query will see any more.
  void forget_behind_window(layer_state& it, int layer);
  /// Whether a layer with `gone` pages given back still has all that a query at position `tokens` sees, and a page.
  bool sees_what_is_there(int layer, std::size_t tokens, std::size_t gone) const {
    return gone == 0 ||
           (tokens > sinks_ + gone * page_tokens && first_seen(layer, tokens) >= sinks_ + gone * page_tokens);
  }
  /// By a query at `position`, or one that lies `earlier` tokens before it.
  std::size_t first_seen(int layer, std::size_t position, std::size_t earlier = 0) const {
    std::size_t const window = info_.shape.window_of(layer);
    return window == 0 || position + 1 < window + earlier ? 0 : position + 1 - window - earlier;
  }

  std::span<std::byte> page_of(page_id block, std::size_t kv_head) const {
    return pool_->block(block).subspan(kv_head * page_bytes_, page_bytes_);
  }
  /// Where a layer's exact keys or values start in `sequence::exact_`: the sinks, then the tail.
  std::size_t exact_offset(int layer, side which) const {
    auto const matrix = static_cast<std::size_t>(layer) * 2 + (which == side::v ? 1 : 0);
    return matrix * (sinks_ + tail_capacity_) * kv_channels();
  }
  template <class Half>
  view2d<Half> sink_rows(Half* exact, layer_state const& it, int layer, side which) const {
    return {exact + exact_offset(layer, which), sinks_of(it), kv_channels()};
  }
  template <class Half>
  view2d<Half> tail_rows(Half* exact, layer_state const& it, int layer, side which) const {
    return {exact + exact_offset(layer, which) + sinks_ * kv_channels(), tail_of(it), kv_channels()};
  }
  byte_report bytes_of_blocks(std::size_t blocks) const;

  artifact_info info_;
  page_geometry geometry_;
  std::size_t kv_heads_, sinks_, tail_capacity_, rewind_, page_bytes_;
  std::pmr::memory_resource* memory_;
  appender_type appender_;
  std::shared_ptr<page_pool> pool_;
};

}  // namespace kvquant

#include "kvquant/cache/kv_cache_impl.hpp"
