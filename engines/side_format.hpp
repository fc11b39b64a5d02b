#pragma once
/// \file
/// A format with its bits and its outliers, by the name that tables and command lines give it.

#include <optional>
#include <string>
#include <string_view>

#include "kvquant/format/formats.hpp"

namespace kvquant {

/// One side: "nuq3-1%", "adaptive2.5-0.5%", "f16".
struct side_format {
  format_id id;
  double bits = 0;              ///< of an element, slots included; of formats that are `by_channel`, else 0
  double outlier_fraction = 0;  ///< of a page's elements; of formats that are `by_channel` paid from `bits`

  bool by_channel() const { return id.bits == 0; }
  friend bool operator==(side_format const&, side_format const&) = default;
};

std::string to_string(side_format const& format);

/// What `to_string` writes. `outliers`: the fraction of a format that names none, but f16's. Throws `bad_format` or
/// `bad_value` naming what is expected.
side_format parse_side_format(std::string_view word, std::optional<double> outliers = {});

}  // namespace kvquant
