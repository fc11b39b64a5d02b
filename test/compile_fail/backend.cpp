#include "kvquant/attend/backend.hpp"

#include <cstddef>
#include <span>
#include <string_view>

#include "kvquant/attend/policy.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/format/passthrough.hpp"

namespace {

using namespace kvquant;
using some_spec = spec<nuq<3>, nuq<3>>;

struct whole_selector {
  int operator()(policy_query const&) const { return 64; }
};
struct selector_that_holds_something : whole_selector {
  int held = 0;
};
struct selector_that_must_be_given_something : whole_selector {
  explicit selector_that_must_be_given_something(int) {}
};
struct selector_that_does_not_select {};
struct selector_of_no_plain_value {
  std::string operator()(policy_query const&) const { return {}; }
};

template <class S>
struct layout_without_spec {
  static constexpr std::string_view name = "none";
  static std::size_t page_bytes(page_geometry const&) { return 0; }
  static void write(page_geometry const&, canonical_page<S> const&, std::span<std::byte>) {}
  static void read(page_geometry const&, std::span<std::byte const>, canonical_page<S>&) {}
};
template <class S>
struct whole_layout : layout_without_spec<S> {
  using spec_type = S;
};
using mixed_spec = spec<passthrough, nuq<3>>;
struct layout_of_one_exact_side : whole_layout<some_spec> {
  using spec_type = mixed_spec;
};
struct layout_without_name : whole_layout<some_spec> {
  static void name() {}
};
struct layout_without_size : whole_layout<some_spec> {
  static void page_bytes() {}
};
struct layout_of_another_size : whole_layout<some_spec> {
  static int page_bytes(page_geometry const&) { return 0; }
};
struct layout_that_cannot_write : whole_layout<some_spec> {
  static void write() {}
};
struct layout_that_cannot_read : whole_layout<some_spec> {
  static void read() {}
};

template <class S>
struct whole_attention {
  explicit whole_attention(artifact<S> const&) {}
  void operator()(int, std::span<attend_args const>, executor_ref) const {}
};
struct attention_of_nothing {
  void operator()(int, std::span<attend_args const>, executor_ref) const {}
};
struct attention_that_changes : whole_attention<some_spec> {
  using whole_attention::whole_attention;
  void operator()(int, std::span<attend_args const>, executor_ref) {}
};
struct attention_of_single_questions : whole_attention<some_spec> {
  using whole_attention::whole_attention;
  void operator()(int, attend_args const&, executor_ref) const {}
};

// A derived name would not hide a type from GCC: what lacks one is put together without it.
struct has_layout {
  template <class S>
  using page_layout = whole_layout<S>;
};
struct has_attention {
  template <class S>
  using attention = whole_attention<S>;
};
struct has_selector {
  using policy_selector = whole_selector;
};
struct has_functions {
  static constexpr std::string_view name = "nothing";
  static support supports(artifact_info const&) { return {}; }
};
struct whole : has_layout, has_attention, has_selector, has_functions {};
struct without_layout : has_attention, has_selector, has_functions {};
struct without_attention : has_layout, has_selector, has_functions {};
struct without_selector : has_layout, has_attention, has_functions {};
struct without_name : whole {
  static void name() {}
};
struct without_supports : whole {
  static void supports() {}
};
struct saying_yes_or_no : whole {
  static bool supports(artifact_info const&) { return true; }
};

template <PolicySelector P>
constexpr bool selects() {
  return true;
}
template <PageLayout L>
constexpr bool lays_out() {
  return true;
}
template <class S, Attention<S> A>
constexpr bool attends() {
  return true;
}
template <Backend B>
constexpr bool serves() {
  return true;
}

}  // namespace

static_assert(selects<whole_selector>() && lays_out<whole_layout<some_spec>>());
static_assert(attends<some_spec, whole_attention<some_spec>>() && serves<whole>());
#if CASE == 1  // is_empty
static_assert(selects<selector_that_holds_something>());
#elif CASE == 2   // default_initializable
static_assert(selects<selector_that_must_be_given_something>());
#elif CASE == 3   // p(query)
static_assert(selects<selector_that_does_not_select>());
#elif CASE == 4   // is_trivially_copyable
static_assert(selects<selector_of_no_plain_value>());
#elif CASE == 5   // spec_type
static_assert(lays_out<layout_without_spec<some_spec>>());
#elif CASE == 6   // PackedSpec
static_assert(lays_out<layout_of_one_exact_side>());
#elif CASE == 7   // L::name
static_assert(lays_out<layout_without_name>());
#elif CASE == 8   // L::page_bytes(geometry)
static_assert(lays_out<layout_without_size>());
#elif CASE == 9   // L::page_bytes(geometry)
static_assert(lays_out<layout_of_another_size>());
#elif CASE == 10  // L::write(geometry, page, bytes)
static_assert(lays_out<layout_that_cannot_write>());
#elif CASE == 11  // L::read(geometry, read, out)
static_assert(lays_out<layout_that_cannot_read>());
#elif CASE == 12  // constructible_from
static_assert(attends<some_spec, attention_of_nothing>());
#elif CASE == 13  // attend(layer, batch, executor)
static_assert(attends<some_spec, attention_that_changes>());
#elif CASE == 14  // attend(layer, batch, executor)
static_assert(attends<some_spec, attention_of_single_questions>());
#elif CASE == 15  // PackedSpec
static_assert(attends<mixed_spec, whole_attention<mixed_spec>>());
#elif CASE == 16  // B::name
static_assert(serves<without_name>());
#elif CASE == 17  // page_layout
static_assert(serves<without_layout>());
#elif CASE == 18  // attention
static_assert(serves<without_attention>());
#elif CASE == 19  // policy_selector
static_assert(serves<without_selector>());
#elif CASE == 20  // B::supports(info)
static_assert(serves<without_supports>());
#elif CASE == 21  // B::supports(info)
static_assert(serves<saying_yes_or_no>());
#endif
