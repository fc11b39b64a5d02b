#pragma once
/// \file
/// Who seals the pages of a cache: the definition, or what the layout of the pages brings.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <type_traits>

#include "kvquant/cache/page.hpp"
#include "kvquant/cache/page_sealer.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/view.hpp"

namespace kvquant {

/// What becomes a page of one KV head; see `page_sealer::seal`.
struct head_tokens {
  std::size_t head;                     ///< which KV head
  view2d<half const> k, v;              ///< the last tokens of the page, [page_tokens − reused, kv_channels]
  std::span<value_range const> ranges;  ///< of their values
  std::size_t reused = 0;               ///< tokens before them, which stay as
  std::span<std::byte const> before{};  ///< the page sealed before has them; may be the one that is written
};

/// Seals the pages of one layer, bit by bit as `page_sealer` and the layout say. `worker` is the scratch of one thread;
/// const calls with workers of their own may overlap. `range_of` is that of a token's values, over all KV heads;
/// `clamps` what the worker has counted.
template <class T, class S>
concept Sealer = PackedSpec<S> && std::constructible_from < T,
        artifact<S>
const&, int,
    page_geometry const& > &&requires(T const& sealer, std::span<half const> token, head_tokens const& tokens,
                                      std::span<std::byte> page, typename T::worker& mine) {
  { sealer.quantizers() } -> std::same_as<page_sealer<S> const&>;
  { sealer.table_bytes() } -> std::same_as<std::size_t>;
  { sealer.make_worker() } -> std::same_as<typename T::worker>;
  { sealer.range_of(token, mine) } -> std::same_as<value_range>;
  { T::clamps(mine) } -> std::same_as<clamp_counts&>;
  sealer.seal(tokens, page, mine);
};

/// The definition itself.
template <PageLayout Layout>
class layout_sealer {
 public:
  /// Formats of keys and values.
  using spec_type = typename Layout::spec_type;
  /// Scratch of one thread.
  using worker = typename page_sealer<spec_type>::worker;

  /// Throws what `page_sealer` throws.
  layout_sealer(artifact<spec_type> const& it, int layer, page_geometry const& geometry)
      : quantizers_(it, layer, geometry) {}

  ///@{
  /// As `Sealer` asks.
  page_sealer<spec_type> const& quantizers() const { return quantizers_; }
  std::size_t table_bytes() const { return quantizers_.table_bytes(); }
  worker make_worker() const { return quantizers_.make_worker(); }
  value_range range_of(std::span<half const> token, worker& mine) const { return quantizers_.range_of(token, mine); }

  static clamp_counts& clamps(worker& mine) { return mine.clamps; }

  void seal(head_tokens const& tokens, std::span<std::byte> page, worker& mine) const {
    page_geometry const geometry = quantizers_.geometry(tokens.head);
    if (tokens.reused > 0) Layout::read(geometry, tokens.before, mine.page);
    quantizers_.seal(tokens.head, tokens.k, tokens.v, tokens.ranges, tokens.reused, mine);
    Layout::write(geometry, mine.page, page);
  }
  ///@}

 private:
  page_sealer<spec_type> quantizers_;
};

namespace detail {
template <class Layout>
struct sealer_of {
  using type = layout_sealer<Layout>;
};
template <class Layout>
  requires requires { typename Layout::sealer; }
struct sealer_of<Layout> {
  using type = typename Layout::sealer;
};
}  // namespace detail

/// `Layout::sealer` where the layout names one.
template <PageLayout Layout>
using sealer_for = typename detail::sealer_of<Layout>::type;

}  // namespace kvquant
