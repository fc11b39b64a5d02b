#pragma once
/// \file
/// Who stores what is appended: the host, or what the layout of the pages brings (a device, say).

#include <algorithm>
#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvquant/cache/layout_sealer.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/cache/page_pool.hpp"
#include "kvquant/cache/storable.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/executor.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/scratch_pool.hpp"
#include "kvquant/core/view.hpp"

namespace kvquant {

/// What an appender needs to know of its cache.
struct appender_options {
  page_geometry geometry;                    ///< of a head's pages; without widths of channels
  std::size_t kv_heads = 0, page_bytes = 0;  ///< of a layer; of one head's page
  void* queue = nullptr;                     ///< see `cache_options`

  /// Elements of one token of a layer, on one side.
  std::size_t kv_channels() const { return kv_heads * geometry.head_dim; }
  /// Of a block of the pool: the pages of all KV heads.
  std::size_t block_bytes() const { return kv_heads * page_bytes; }
};

/// New tokens of one layer of a sequence, and where they go. The first `to_sinks` become sinks. The others stand behind
/// those of the tail; of both together the first `sealed_rows()` go into pages, the rest is the tail from then on.
template <TokenElement T>
struct append_work {
  int layer = 0;                              ///< of the model
  view2d<T const> k, v;                       ///< [tokens, kv_channels]
  std::size_t to_sinks = 0;                   ///< new tokens that become sinks
  half *sink_k = nullptr, *sink_v = nullptr;  ///< where those go, [to_sinks, kv_channels]
  half *tail_k = nullptr, *tail_v = nullptr;  ///< [tail_capacity, kv_channels]
  std::size_t tail = 0, tail_capacity = 0;    ///< tokens that are there, and that there is room for
  std::size_t reused = 0;                     ///< tokens before the tail that are in a re-opened page
  std::byte const* before = nullptr;          ///< that page, of every KV head; may be the first that is written
  std::byte* slab = nullptr;                  ///< [blocks of the pool, kv_heads, page_bytes]
  std::span<page_id const> blocks{};          ///< the pages that are filled

  /// How many tokens of the old tail and the new ones go into pages.
  std::size_t sealed_rows() const { return blocks.empty() ? 0 : blocks.size() * page_tokens - reused; }
  /// Tokens in the tail afterwards.
  std::size_t tail_after() const { return tail + k.rows - to_sinks - sealed_rows(); }
};

/// Stores and seals. `check` throws `bad_value` for tokens that binary16 cannot hold, as far as the host can read
/// them; `append` may return before all is done, `wait` when it is. Calls for different sequences may overlap.
template <class A, class S>
concept Appender = PackedSpec<S> && std::constructible_from < A,
        artifact<S>
const&, appender_options const& > &&requires(A& appender, A const& constant, int layer, view2d<float const> rows,
                                             append_work<float> const& work, executor_ref executor) {
  { constant.layers() } -> std::same_as<std::size_t>;
  { constant.quantizers(layer) } -> std::same_as<page_sealer<S> const&>;
  { constant.table_bytes() } -> std::same_as<std::size_t>;
  { constant.clamps() } -> std::same_as<clamp_counts>;
  constant.check(rows, rows);
  appender.append(work, executor);
  constant.wait();
};

/// Everything on the host, before `append` returns.
template <PageLayout Layout>
class host_appender {
 public:
  /// Formats of keys and values.
  using spec_type = typename Layout::spec_type;
  /// What makes its pages: the layout's own `sealer`, or the definition.
  using sealer_type = sealer_for<Layout>;
  static_assert(Sealer<sealer_type, spec_type>);

  /// Throws what the sealers throw for an artifact that they cannot serve.
  host_appender(artifact<spec_type> const& it, appender_options const& options) : options_(options) {
    for (int layer = 0; layer < it.info.shape.layers; ++layer) sealers_.emplace_back(it, layer, options.geometry);
  }

  /// Of the model.
  std::size_t layers() const { return sealers_.size(); }
  /// Of a layer; throws `std::out_of_range`.
  page_sealer<spec_type> const& quantizers(int layer) const {
    return sealers_.at(static_cast<std::size_t>(layer)).quantizers();
  }
  /// Of all layers' tables.
  std::size_t table_bytes() const {
    std::size_t bytes = 0;
    for (auto const& it : sealers_) bytes += it.table_bytes();
    return bytes;
  }
  /// Of all that was sealed so far. May be called while others append.
  clamp_counts clamps() const {
    clamp_counts all;
    for_each_count(all, [](std::atomic<std::uint64_t> const& total, std::uint64_t& to) { to = total; });
    return all;
  }
  /// Throws `bad_value` naming token and channel of what binary16 cannot hold.
  template <TokenElement T>
  void check(view2d<T const> k, view2d<T const> v) const {
    require_storable_rows(k, "keys");
    require_storable_rows(v, "values");
  }
  /// All is done when `append` returns.
  void wait() const {}

  /// Stores and seals; the pages of different heads are tasks of the executor.
  template <TokenElement T>
  void append(append_work<T> const& work, executor_ref executor) {
    store(work, 0, work.to_sinks, work.sink_k, work.sink_v);
    std::size_t tail = work.tail, reused = work.reused, next = work.to_sinks;
    std::byte const* before = work.before;
    for (page_id const block : work.blocks) {
      std::size_t const rows = work.tail_capacity - reused - tail, fresh = page_tokens - reused;
      store(work, next, rows, work.tail_k + tail * channels(), work.tail_v + tail * channels());
      next += rows;
      tail += rows;
      seal(work, {work.tail_k, fresh, channels()}, {work.tail_v, fresh, channels()}, reused, before,
           work.slab + block * options_.block_bytes(), executor);
      for (half* const it : std::array{work.tail_k, work.tail_v})  // what has not been sealed moves to the front
        std::copy(it + fresh * channels(), it + tail * channels(), it);
      tail -= fresh;
      reused = 0;
    }
    store(work, next, work.k.rows - next, work.tail_k + tail * channels(), work.tail_v + tail * channels());
  }

 private:
  struct sealing {  // scratch of one call
    std::vector<typename sealer_type::worker> workers;
    std::array<value_range, page_tokens> ranges;
  };

  std::size_t channels() const { return options_.kv_channels(); }

  /// `rows` of the new tokens, from `first`.
  template <TokenElement T>
  void store(append_work<T> const& work, std::size_t first, std::size_t rows, half* to_k, half* to_v) const {
    for (std::size_t row = first; row < first + rows; ++row) {
      for (std::size_t channel = 0; channel < channels(); ++channel)
        to_k[channel] = detail::stored(work.k(row, channel));
      for (std::size_t channel = 0; channel < channels(); ++channel)
        to_v[channel] = detail::stored(work.v(row, channel));
      to_k += channels();
      to_v += channels();
    }
  }

  /// Seals one page of every KV head, [kv_heads, page_bytes].
  template <TokenElement T>
  void seal(append_work<T> const& work, view2d<half const> k, view2d<half const> v, std::size_t reused,
            std::byte const* before, std::byte* block, executor_ref executor) {
    sealer_type const& sealer = sealers_[static_cast<std::size_t>(work.layer)];
    auto const scratch = scratch_.borrow();
    while (scratch->workers.size() < static_cast<std::size_t>(executor.workers()))
      scratch->workers.push_back(sealer.make_worker());
    executor.parallel_for(k.rows, [&](std::size_t token, int worker) {
      scratch->ranges[token] = sealer.range_of(v.row(token), scratch->workers[static_cast<std::size_t>(worker)]);
    });
    executor.parallel_for(options_.kv_heads, [&](std::size_t head, int worker) {
      std::size_t const bytes = options_.page_bytes;
      head_tokens tokens{head, k, v, std::span(scratch->ranges).first(k.rows), reused};
      if (reused > 0) tokens.before = {before + head * bytes, bytes};
      sealer.seal(tokens, {block + head * bytes, bytes}, scratch->workers[static_cast<std::size_t>(worker)]);
    });
    for (typename sealer_type::worker& it : scratch->workers)
      for_each_count(sealer_type::clamps(it),
                     [](std::atomic<std::uint64_t>& total, std::uint64_t& from) { total += std::exchange(from, 0); });
  }

  /// `f(total of all calls, count)` for each member.
  template <class F>
  void for_each_count(clamp_counts& of, F&& f) const {
    std::uint64_t* const members[] = {&of.keys, &of.values, &of.clamped_keys, &of.clamped_values};
    for (std::size_t i = 0; i < clamp_totals_.size(); ++i) f(clamp_totals_[i], *members[i]);
  }

  appender_options options_;
  std::vector<sealer_type> sealers_;  // [layers]
  scratch_pool<sealing> scratch_;
  mutable std::array<std::atomic<std::uint64_t>, 4> clamp_totals_{};  // the members of `clamp_counts`
};

namespace detail {
template <class Layout>
struct appender_of {
  using type = host_appender<Layout>;
};
template <class Layout>
  requires requires { typename Layout::appender; }
struct appender_of<Layout> {
  using type = typename Layout::appender;
};
}  // namespace detail

/// `Layout::appender` where the layout names one.
template <PageLayout Layout>
using appender_for = typename detail::appender_of<Layout>::type;

}  // namespace kvquant
