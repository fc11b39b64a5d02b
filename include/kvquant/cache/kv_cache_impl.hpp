#pragma once
/// \file
/// The members of `kv_cache`; include `kv_cache.hpp`.

#include <limits>

#include "kvquant/cache/kv_cache.hpp"

namespace kvquant {

namespace detail {

template <PackedSpec S>
page_geometry cache_geometry(artifact<S> const& it) {
  artifact_info const& info = it.info;
  require(info.keys == key_space::pre_rope, errc::unsupported,
          "cache: keys quantized after RoPE, expected an artifact of keys before RoPE");
  require(info.spec == S::name(), errc::bad_format, "cache: an artifact of \"", info.spec, "\", expected \"", S::name(),
          "\"");
  validate(info.shape);
  require(it.layers.size() == static_cast<std::size_t>(info.shape.layers), errc::bad_shape, "cache: an artifact of ",
          it.layers.size(), " layers, expected ", info.shape.layers);
  return geometry_for<S>(info);
}

/// Blocks for `max_tokens` of every layer, or of some a window for each of `max_sequences`. A prompt may take the pages
/// of all its tokens in one layer, and gives most of them back before the next layer's turn.
inline std::size_t blocks_for(cache_options const& options, model_shape const& shape) {
  constexpr std::size_t most = std::numeric_limits<page_id>::max();
  std::size_t const layers = static_cast<std::size_t>(shape.layers), max_tokens = options.max_tokens;
  std::size_t const pages = max_tokens / page_tokens + (max_tokens % page_tokens != 0 ? 1 : 0);
  require(pages <= most / layers, errc::bad_value, "cache: max_tokens is ", max_tokens, ", expected at most ",
          most / layers * page_tokens);
  std::size_t const local = shape.local.layers.size();
  if (local == 0 || options.max_sequences == 0 || options.max_sequences >= pages) return pages * layers;
  // Whole pages that a window may touch, and those that wait to be given back or filled.
  std::size_t const kept =
      (static_cast<std::size_t>(shape.local.window) + static_cast<std::size_t>(options.rewind_tokens)) / page_tokens +
      static_cast<std::size_t>(options.recent_pages) + 4;
  std::size_t const windows = kept >= pages / options.max_sequences ? pages : kept * options.max_sequences;
  return std::min(pages * layers, pages * (layers - local) + windows * local + pages);
}

inline std::size_t checked_count(int x, int largest, char const* what) {
  require(x >= 0 && x <= largest, errc::bad_value, "cache: ", what, " is ", x, ", expected 0 to ", largest);
  return static_cast<std::size_t>(x);
}

}  // namespace detail

template <class S, class Layout>
kv_cache<S, Layout>::kv_cache(artifact<S> const& it, cache_options const& options)
    : info_(it.info),
      geometry_(detail::cache_geometry(it)),
      kv_heads_(static_cast<std::size_t>(it.info.shape.kv_heads)),
      sinks_(detail::checked_count(options.sinks.value_or(it.info.sinks), 1 << 16, "sinks")),
      tail_capacity_((detail::checked_count(options.recent_pages, 1 << 20, "recent_pages") + 1) * page_tokens),
      rewind_(detail::checked_count(options.rewind_tokens, 1 << 30, "rewind_tokens")),
      page_bytes_(Layout::page_bytes(geometry_)),
      memory_(detail::memory_for<Layout>(options.memory)),
      appender_(it, {.geometry = geometry_, .kv_heads = kv_heads_, .page_bytes = page_bytes_, .queue = options.queue}) {
  require(page_bytes_ % page_alignment == 0, errc::bad_shape, "cache: the layout's pages have ", page_bytes_,
          " bytes, expected a multiple of ", page_alignment);
  for (int layer = 0; layer < it.info.shape.layers; ++layer) {
    for (std::size_t const channels : {this->layer(layer).keys().channels(), this->layer(layer).values().channels()})
      require(channels == kv_channels(), errc::bad_shape, "cache: layer ", layer, " of the artifact has ", channels,
              " channels, expected ", kv_channels());
  }
  pool_ = std::make_shared<page_pool>(detail::blocks_for(options, it.info.shape), kv_heads_ * page_bytes_, memory_);
}

template <class S, class Layout>
sequence kv_cache<S, Layout>::open(std::size_t expected_tokens) {
  sequence it(pool_, memory_);
  it.exact_.resize(exact_offset(static_cast<int>(layers()), side::k));
  it.layers_.reserve(layers());
  std::size_t const expected_pages = std::min(expected_tokens / page_tokens + 1, pool_->blocks());
  for (std::size_t layer = 0; layer < layers(); ++layer) {
    it.layers_.emplace_back(memory_);
    it.layers_.back().pages.reserve(expected_pages);
  }
  return it;
}

template <class S, class Layout>
sequence kv_cache<S, Layout>::fork(sequence const& of) {
  require_own(of);
  wait();
  sequence it = open(of.tokens());
  it.exact_ = of.exact_;
  for (std::size_t layer = 0; layer < layers(); ++layer) {
    layer_state const& from = of.layers_[layer];
    layer_state& to = it.layers_[layer];
    auto const in_use = std::span(from.pages).first(from.pages_in_use());
    to.pages.assign(in_use.begin(), in_use.end());
    to.gone = from.gone;
    pool_->share(to.pages);
    to.tokens = from.tokens;
    to.sealed = from.sealed;
  }
  return it;
}

template <class S, class Layout>
template <class T>
void kv_cache<S, Layout>::prepare(sequence& to, int layer, view2d<T> k, view2d<T> v) {
  layer_state& it = state(to, layer);
  require(k.rows == v.rows && k.cols == kv_channels() && v.cols == kv_channels(), errc::bad_shape, "append: keys ",
          k.rows, " x ", k.cols, ", values ", v.rows, " x ", v.cols, ", expected both tokens x ", kv_channels());
  appender_.check(view2d<std::remove_const_t<T> const>(k), view2d<std::remove_const_t<T> const>(v));
  forget_behind_window(it, layer);
  take_pages(it, pages_sealed_by(it, k.rows));
}

template <class S, class Layout>
template <class T>
void kv_cache<S, Layout>::append(sequence& to, int layer, view2d<T> k, view2d<T> v, executor_ref executor) {
  prepare(to, layer, k, v);
  layer_state& it = state(to, layer);
  half* const exact = to.exact_.data();
  std::size_t const in_use = it.pages_in_use(), reused = it.reopened(), seals = pages_sealed_by(it, k.rows);
  page_id const before = reused > 0 ? it.pages[in_use - 1] : 0;
  bool const replaces = seals > 0 && reused > 0 && pool_->is_shared(before);
  std::size_t const first = in_use - (reused > 0 && !replaces ? 1 : 0), sinks = sinks_of(it);
  append_work<std::remove_const_t<T>> const work{.layer = layer,
                                                 .k = k,
                                                 .v = v,
                                                 .to_sinks = std::min(k.rows, sinks_ - sinks),
                                                 .sink_k = exact + exact_offset(layer, side::k) + sinks * kv_channels(),
                                                 .sink_v = exact + exact_offset(layer, side::v) + sinks * kv_channels(),
                                                 .tail_k = tail_rows(exact, it, layer, side::k).data,
                                                 .tail_v = tail_rows(exact, it, layer, side::v).data,
                                                 .tail = tail_of(it),
                                                 .tail_capacity = tail_capacity_,
                                                 .reused = reused,
                                                 .before = pool_->block(before).data(),
                                                 .slab = pool_->data(),
                                                 .blocks = std::span(it.pages).subspan(first, seals)};
  appender_.append(work, executor);
  it.tokens += k.rows;
  it.sealed += work.sealed_rows();
  if (replaces) {
    it.pages.erase(it.pages.begin() + static_cast<std::ptrdiff_t>(in_use) - 1);
    pool_->release({&before, 1});
  }
}

template <class S, class Layout>
void kv_cache<S, Layout>::reserve(sequence& of, std::size_t tokens) {
  require_own(of);
  std::vector<std::size_t> before;
  for (layer_state const& it : of.layers_) before.push_back(it.pages.size());
  try {
    for (layer_state& it : of.layers_) take_pages(it, pages_sealed_by(it, tokens));
  } catch (...) {
    for (std::size_t layer = 0; layer < layers(); ++layer) {
      auto& pages = of.layers_[layer].pages;
      pool_->release(std::span(pages).subspan(before[layer]));
      pages.resize(before[layer]);
    }
    throw;
  }
}

template <class S, class Layout>
void kv_cache<S, Layout>::truncate(sequence& of, std::size_t tokens) {
  require_own(of);
  require(tokens <= of.tokens(), errc::bad_value, "truncate: to ", tokens, " tokens, the sequence has ", of.tokens());
  for (int layer = 0; layer < static_cast<int>(layers()); ++layer) {
    layer_state const& it = state(of, layer);
    std::size_t const left = std::min(it.tokens, tokens), kept = sinks_ + it.gone * page_tokens;
    require(left <= sinks_ || sees_what_is_there(layer, left, it.gone), errc::bad_value, "truncate: to ", left,
            " tokens, where layer ", layer, " sees those from ", first_seen(layer, left), " on, but before ", kept,
            " they lay behind its window and were given back; expected at least ",
            std::max(kept + info_.shape.window_of(layer) - 1, kept + 1), " tokens, or up to ", sinks_);
  }
  for (layer_state& it : of.layers_) {
    it.tokens = std::min(it.tokens, tokens);
    it.sealed = std::min(it.sealed, it.tokens - sinks_of(it));
    if (it.sealed == 0) it.gone = 0;
    pool_->release(std::span(it.pages).subspan(it.pages_in_use()));
    it.pages.resize(it.pages_in_use());
  }
}

template <class S, class Layout>
void kv_cache<S, Layout>::drop(sequence& of, std::size_t first, std::size_t count) {
  require_own(of);
  for (layer_state const& it : of.layers_) {
    std::size_t const end = sinks_ + it.sealed / page_tokens * page_tokens;
    bool const whole_pages = first >= sinks_ && (first - sinks_) % page_tokens == 0 && count % page_tokens == 0 &&
                             first <= end && count <= end - first;
    require(whole_pages, errc::bad_value, "drop: ", count, " tokens from ", first,
            ", expected whole sealed pages: from ", sinks_, " + a multiple of ", page_tokens, ", to ", end, " at most");
    require(it.tokens == of.tokens(), errc::bad_value, "drop: the layers hold ", it.tokens, " and ", of.tokens(),
            " tokens, expected as many each");
  }
  std::size_t const begin = (first - sinks_) / page_tokens, end = begin + count / page_tokens;
  auto const gone_after = [&](layer_state const& it) {
    return begin < it.gone ? it.gone - (std::min(end, it.gone) - begin) : it.gone;
  };
  for (int layer = 0; layer < static_cast<int>(layers()); ++layer) {
    layer_state const& it = state(of, layer);
    std::size_t const gone = gone_after(it);
    bool const leaves_a_page = gone == 0 || it.gone + it.pages_in_use() > gone + (end - begin);
    require(leaves_a_page && sees_what_is_there(layer, it.tokens - count, gone), errc::bad_value, "drop: ", count,
            " tokens from ", first, ", behind which layer ", layer, " would see tokens before ",
            sinks_ + gone * page_tokens, ", which lay behind its window and were given back");
  }
  for (layer_state& it : of.layers_) {
    auto const at = [&](std::size_t page) {
      return it.pages.begin() + static_cast<std::ptrdiff_t>(page - std::min(page, it.gone));
    };
    auto const from = at(begin), to = at(end);
    pool_->release(std::span(from, to));
    it.gone = gone_after(it);
    it.pages.erase(from, to);
    it.sealed -= count;
    it.tokens -= count;
  }
}

template <class S, class Layout>
layer_view kv_cache<S, Layout>::view(sequence const& of, int layer) const {
  layer_state const& it = state(of, layer);
  half const* const exact = of.exact_.data();
  return {.sink_k = sink_rows(exact, it, layer, side::k),
          .sink_v = sink_rows(exact, it, layer, side::v),
          .slab = pool_->data(),
          .page_bytes = page_bytes_,
          .pages = std::span(it.pages).first(it.pages_in_use()),
          .sealed = it.sealed,
          .tail_k = tail_rows(exact, it, layer, side::k),
          .tail_v = tail_rows(exact, it, layer, side::v),
          .window = info_.shape.window_of(layer),
          .gone = it.gone};
}

template <class S, class Layout>
void kv_cache<S, Layout>::read_page(sequence const& of, int layer, std::size_t page, std::size_t kv_head,
                                    canonical_page<S>& out) const {
  layer_state const& it = state(of, layer);
  std::size_t const pages = it.gone + it.pages_in_use();
  require(page < pages && kv_head < kv_heads_, errc::bad_value, "read_page: page ", page, " of KV head ", kv_head,
          ", there are ", pages, " pages of ", kv_heads_, " heads");
  require(page >= it.gone, errc::bad_value, "read_page: page ", page, " of layer ", layer,
          " lay behind the layer's window and was given back, as were all before ", it.gone);
  wait();
  out.resize(geometry_);
  Layout::read(this->layer(layer).geometry(kv_head), page_of(it.pages[page - it.gone], kv_head), out);
}

template <class S, class Layout>
template <class Exact, class Page>
sequence kv_cache<S, Layout>::assemble(std::size_t tokens, std::size_t sealed, Exact&& exact, Page&& page,
                                       std::size_t gone) {
  std::size_t const beyond_sinks = tokens - std::min(tokens, sinks_);
  require(sealed <= beyond_sinks && sealed % page_tokens + (beyond_sinks - sealed) < tail_capacity_, errc::bad_value,
          "assemble: ", tokens, " tokens, ", sealed, " of them in pages, do not fit ", sinks_, " sinks and a tail of ",
          tail_capacity_ - 1);
  std::size_t const pages = sealed / page_tokens + (sealed % page_tokens != 0 ? 1 : 0);
  for (int const layer : info_.shape.local.layers)
    require(gone == 0 || (gone < pages && sees_what_is_there(layer, tokens, gone)), errc::bad_value, "assemble: ", gone,
            " of ", pages, " pages were given back of ", tokens, " tokens, of which layer ", layer, " sees those from ",
            first_seen(layer, tokens), " on");
  pool_->require_free(pages - (gone < pages ? gone : 0));
  wait();
  sequence of = open(tokens);
  canonical_page<S> one(geometry_);
  for (int layer = 0; layer < static_cast<int>(layers()); ++layer) {
    layer_state& it = state(of, layer);
    std::size_t const missing = info_.shape.is_local(layer) ? gone : 0;
    it.pages.resize(pages - missing);
    try {
      pool_->allocate(it.pages);
    } catch (...) {
      it.pages.clear();
      throw;
    }
    it.gone = missing;
    it.tokens = tokens;
    it.sealed = sealed;
    half* const stored = of.exact_.data();
    exact(layer, false, sink_rows(stored, it, layer, side::k), sink_rows(stored, it, layer, side::v));
    exact(layer, true, tail_rows(stored, it, layer, side::k), tail_rows(stored, it, layer, side::v));
    for (std::size_t index = 0; index < it.pages.size(); ++index)
      for (std::size_t head = 0; head < kv_heads_; ++head) {
        page(layer, it.gone + index, head, one);
        Layout::write(this->layer(layer).geometry(head), one, page_of(it.pages[index], head));
      }
  }
  return of;
}

template <class S, class Layout>
typename kv_cache<S, Layout>::layer_state& kv_cache<S, Layout>::state(sequence& of, int layer) const {
  require_own(of);
  require(layer >= 0 && static_cast<std::size_t>(layer) < layers(), errc::bad_value, "layer ", layer,
          ", expected 0 to ", layers() - 1);
  return of.layers_[static_cast<std::size_t>(layer)];
}

template <class S, class Layout>
void kv_cache<S, Layout>::require_own(sequence const& of) const {
  require(of.pool_ == pool_, errc::bad_value, "the sequence is not one of this cache");
}

template <class S, class Layout>
std::size_t kv_cache<S, Layout>::pages_sealed_by(layer_state const& it, std::size_t tokens) const {
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
  std::size_t const all = it.tokens + std::min(tokens, most - it.tokens);
  std::size_t const sealed = it.sealed / page_tokens, then = sealed_tokens(all, sinks_, recent_pages()) / page_tokens;
  return then > sealed ? then - sealed : 0;
}

template <class S, class Layout>
void kv_cache<S, Layout>::take_pages(layer_state& it, std::size_t seals) {
  bool const in_place = seals > 0 && it.reopened() > 0 && !pool_->is_shared(it.pages[it.pages_in_use() - 1]);
  std::size_t const had = it.pages.size(), needed = it.pages_in_use() + seals - (in_place ? 1 : 0);
  if (needed <= had) return;
  pool_->require_free(needed - had);  // before a table grows to whatever was asked for
  it.pages.resize(needed);
  try {
    pool_->allocate(std::span(it.pages).subspan(had));
  } catch (...) {
    it.pages.resize(had);
    throw;
  }
}

/// A later `truncate` may take the next query back by `rewind_`. The last page stays, so that there is one to touch.
template <class S, class Layout>
void kv_cache<S, Layout>::forget_behind_window(layer_state& it, int layer) {
  if (it.sealed == 0 || info_.shape.window_of(layer) == 0) return;
  std::size_t const seen = first_seen(layer, it.tokens, rewind_);
  if (seen <= sinks_) return;
  std::size_t const behind = (seen - sinks_) / page_tokens;
  if (behind <= it.gone) return;
  std::size_t const count = std::min(behind - it.gone, it.pages_in_use() - 1);
  pool_->release(std::span(it.pages).first(count));
  it.pages.erase(it.pages.begin(), it.pages.begin() + static_cast<std::ptrdiff_t>(count));
  it.gone += count;
}

template <class S, class Layout>
byte_report kv_cache<S, Layout>::bytes_of_blocks(std::size_t blocks) const {
  std::size_t const pages = blocks * kv_heads_;
  return {.codes = pages * (geometry_.k_code_bytes() + geometry_.v_code_bytes()),
          .value_ranges = pages * geometry_.range_bytes(),
          .slots = pages * geometry_.slot_bytes(),
          .padding = pages * (page_bytes_ - geometry_.used_bytes())};
}

template <class S, class Layout>
byte_report kv_cache<S, Layout>::bytes(sequence const& of) const {
  require_own(of);
  byte_report all{.tables = appender_.table_bytes()};
  std::size_t const per_block = pool_->blocks() == 0 ? 0 : pool_->bookkeeping_bytes() / pool_->blocks();
  std::size_t const row_bytes = 2 * kv_channels() * sizeof(half);
  for (layer_state const& it : of.layers_) {
    all += bytes_of_blocks(it.pages_in_use());
    all.sinks += sinks_of(it) * row_bytes;
    all.tail += tail_of(it) * row_bytes;
    all.page_table += it.pages.capacity() * sizeof(page_id) + it.pages.size() * per_block;
    all.slack += (sinks_ - sinks_of(it) + tail_capacity_ - tail_of(it)) * row_bytes +
                 (it.pages.size() - it.pages_in_use()) * pool_->block_bytes();
  }
  return all;
}

template <class S, class Layout>
byte_report kv_cache<S, Layout>::bytes() const {
  std::size_t const free = pool_->free_blocks();
  byte_report all = bytes_of_blocks(pool_->blocks() - free);
  all.tables = appender_.table_bytes();
  all.page_table = pool_->bookkeeping_bytes();
  all.slack = free * pool_->block_bytes();
  return all;
}

}  // namespace kvquant
