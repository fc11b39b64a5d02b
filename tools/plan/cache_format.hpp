#pragma once
/// \file
/// What keys and values are stored as, chosen at run time and side by side.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "engines/side_format.hpp"
#include "kvquant/cache/page.hpp"
#include "kvquant/format/formats.hpp"

namespace kvquant::plan {

struct cache_format {
  side_format key, value;

  /// What `kvquant calibrate` can make: the same on both sides.
  bool is_one_spec() const { return key == value; }
  bool is_exact() const { return key.id == format_id_of<passthrough>; }
  friend bool operator==(cache_format const&, cache_format const&) = default;
};

/// "nuq3-1%", or "nuq4-1%/nuq2-1%" where keys and values differ.
std::string to_string(cache_format const& format);

/// What `to_string` writes. `outliers`: the fraction of sides that name none, but f16's. Throws `bad_format` or
/// `bad_value` naming what is expected.
cache_format parse_cache_format(std::string_view text, std::optional<double> outliers = {});

/// Of a page. Throws what `make_page_geometry` throws, and `bad_value` for bits that a format `by_channel` cannot have.
page_geometry geometry_of(cache_format const& format, int head_dim);

}  // namespace kvquant::plan
