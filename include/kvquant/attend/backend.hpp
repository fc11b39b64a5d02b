#pragma once
/// \file
/// What a backend is: a layout for pages, and attention over them.

#include <concepts>
#include <span>
#include <string>
#include <string_view>

#include "kvquant/attend/attend_args.hpp"
#include "kvquant/attend/policy.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/executor.hpp"
#include "kvquant/format/nuq.hpp"

namespace kvquant {

/// Whether something can be done. `missing` names the feature that would be needed; it is empty if all is there.
struct support {
  std::string missing{};  ///< what would be needed; empty: nothing
  /// Whether it can be done.
  explicit operator bool() const { return missing.empty(); }
};

/// Throws `unsupported` with `who` and what is missing.
inline void require_supported(support const& it, std::string_view who) {
  if (!it) throw error{errc::unsupported, text(who, ": not supported: ", it.missing)};
}

/// `A` is attention over the pages of one artifact: `attend(layer, batch, executor)` serves every item of the batch,
/// and gives the same bits whatever the executor and whatever else is in the batch. Const, and from many threads.
template <class A, class S>
concept Attention = PackedSpec<S> && std::constructible_from < A,
        artifact<S>
const& > &&requires(A const& attend, int layer, std::span<attend_args const> batch, executor_ref executor) {
  attend(layer, batch, executor);
};

namespace detail {
using any_spec = spec<nuq<3>, nuq<3>>;  // stands for whatever spec where the concept needs one
}

/// `B::name`; `B::page_layout<S>`, a `PageLayout`; `B::attention<S>`; `B::policy_selector`; `B::supports(info)`, which
/// says what of an artifact's model and datatypes is missing. No backend falls back silently: where it does not support
/// something, its `attention` cannot be constructed.
template <class B>
concept Backend = PolicySelector<typename B::policy_selector> &&
    PageLayout<typename B::template page_layout<detail::any_spec>> &&
    Attention<typename B::template attention<detail::any_spec>, detail::any_spec> &&
    requires(artifact_info const& info) {
  { B::name } -> std::convertible_to<std::string_view>;
  { B::supports(info) } -> std::same_as<support>;
};

}  // namespace kvquant
