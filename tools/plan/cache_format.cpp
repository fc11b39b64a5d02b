#include "tools/plan/cache_format.hpp"

#include "kvquant/calibrate/fit.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/quantize/spec.hpp"

namespace kvquant::plan {

namespace {

/// What of a page's geometry one side decides.
struct side_sizes {
  int bits = 0, token_bits = 0;
  double outlier_fraction = 0;
};

side_sizes sizes_of(side_format const& side, int head_dim) {
  if (!side.by_channel()) return {side.id.bits, 0, side.outlier_fraction};
  auto const budget = budget_of<spec<adaptive, adaptive>>({side.bits, side.outlier_fraction}, head_dim);
  return {adaptive::bits, budget.token_bits, budget.outlier_fraction};
}

}  // namespace

std::string to_string(cache_format const& format) {
  return format.is_one_spec() ? to_string(format.key) : to_string(format.key) + "/" + to_string(format.value);
}

cache_format parse_cache_format(std::string_view text, std::optional<double> outliers) {
  auto const slash = text.find('/');
  side_format const key = parse_side_format(text.substr(0, slash), outliers);
  cache_format const format{key, slash == text.npos ? key : parse_side_format(text.substr(slash + 1), outliers)};
  bool const value_is_exact = format.value.id == format_id_of<passthrough>;
  require(format.is_exact() == value_is_exact, errc::bad_format, "format \"", text,
          "\", expected f16 on both sides or on none");
  return format;
}

page_geometry geometry_of(cache_format const& format, int head_dim) {
  side_sizes const k = sizes_of(format.key, head_dim), v = sizes_of(format.value, head_dim);
  return make_page_geometry(head_dim, k.bits, v.bits, k.outlier_fraction, v.outlier_fraction,
                            {k.token_bits, v.token_bits});
}

}  // namespace kvquant::plan
