#pragma once
/// \file
/// What keys and values are stored as, chosen at run time and side by side.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "kvquant/cache/page.hpp"
#include "kvquant/format/formats.hpp"

namespace kvquant::plan {

/// One side: "nuq3-1%", "adaptive2.5-0.5%", "f16".
struct side_format {
  format_id id;
  double bits = 0;              ///< of an element, slots included; of formats that are `by_channel`, else 0
  double outlier_fraction = 0;  ///< of a page's elements; of formats that are `by_channel` paid from `bits`

  bool by_channel() const { return id.bits == 0; }
  friend bool operator==(side_format const&, side_format const&) = default;
};

struct cache_format {
  side_format key, value;

  /// What `kvquant calibrate` can make: the same on both sides.
  bool is_one_spec() const { return key == value; }
  bool is_exact() const { return key.id == format_id_of<passthrough>; }
  friend bool operator==(cache_format const&, cache_format const&) = default;
};

std::string to_string(side_format const& format);
/// "nuq3-1%", or "nuq4-1%/nuq2-1%" where keys and values differ.
std::string to_string(cache_format const& format);

/// What `to_string` writes. `outliers`: the fraction of sides that name none, but f16's. Throws `bad_format` or
/// `bad_value` naming what is expected.
cache_format parse_cache_format(std::string_view text, std::optional<double> outliers = {});

/// Of a page. Throws what `make_page_geometry` throws, and `bad_value` for bits that a format `by_channel` cannot have.
page_geometry geometry_of(cache_format const& format, int head_dim);

}  // namespace kvquant::plan
