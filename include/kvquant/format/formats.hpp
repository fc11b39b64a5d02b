#pragma once
/// \file
/// The datatypes that can be chosen at run time. A new one is a header and a name in this list.

#include <string>
#include <string_view>
#include <type_traits>

#include "kvquant/core/error.hpp"
#include "kvquant/core/type_list.hpp"
#include "kvquant/format/adaptive.hpp"
#include "kvquant/format/format.hpp"
#include "kvquant/format/normal_float.hpp"
#include "kvquant/format/nuq.hpp"
#include "kvquant/format/passthrough.hpp"
#include "kvquant/format/uniform.hpp"

namespace kvquant {

/// All datatypes that files may name. A new one is added here.
using formats = type_list<nuq<2>, nuq<3>, nuq<4>,                                                              //
                          normal_float<2>, normal_float<3>, normal_float<4>,                                   //
                          uniform<2>, uniform<3>, uniform<4>, uniform<5>, uniform<6>, uniform<7>, uniform<8>,  //
                          adaptive, passthrough>;

/// Names a format at run time; `name` does not own its characters.
struct format_id {
  /// `F::name`
  std::string_view name;
  int bits = 0;  ///< 0: channels have widths of their own
  friend constexpr bool operator==(format_id const&, format_id const&) = default;
};

/// Of a format; those that are `by_channel` have no bits of their own.
template <Format F>
inline constexpr format_id format_id_of{F::name, is_by_channel<F> ? 0 : F::bits};

/// "nuq3", "adaptive"
inline std::string to_string(format_id const& id) {
  return std::string(id.name) + (id.bits > 0 ? std::to_string(id.bits) : "");
}

namespace detail {
[[noreturn]] inline void throw_unknown_format(std::string_view name) {
  std::string known;
  for_each_type(formats{}, [&]<class F>(std::type_identity<F>) {
    known += (known.empty() ? "" : ", ") + to_string(format_id_of<F>);
  });
  throw error{errc::bad_format, text("unknown format \"", name, "\", expected one of ", known)};
}
}  // namespace detail

/// Calls `f(std::type_identity<F>{})` for the format of that name and width. Throws `bad_format` naming the ones there
/// are.
template <class Visitor>
void visit_format(format_id const& id, Visitor&& f) {
  bool const found = visit_first(
      formats{}, [&]<class F>(std::type_identity<F>) { return format_id_of<F> == id; }, f);
  if (!found) detail::throw_unknown_format(to_string(id));
}

/// The format that `to_string` would write so. Throws `bad_format` naming the ones there are.
inline format_id parse_format(std::string_view text) {
  format_id id;
  bool const found = visit_first(
      formats{}, [&]<class F>(std::type_identity<F>) { return to_string(format_id_of<F>) == text; },
      [&]<class F>(std::type_identity<F>) { id = format_id_of<F>; });
  if (!found) detail::throw_unknown_format(text);
  return id;
}

}  // namespace kvquant
