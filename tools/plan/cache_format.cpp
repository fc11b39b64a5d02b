#include "tools/plan/cache_format.hpp"

#include <algorithm>
#include <charconv>

#include "kvquant/calibrate/fit.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/quantize/spec.hpp"

namespace kvquant::plan {

namespace {

bool parse_number(std::string_view text, double& out) {
  auto const [end, failure] = std::from_chars(text.data(), text.data() + text.size(), out);
  return failure == std::errc{} && end == text.data() + text.size();
}

constexpr double most_adaptive_bits = 4.5;  // codes of 4, and slots

side_format parse_side(std::string_view word, std::optional<double> outliers) {
  auto const dash = word.find('-');
  std::string_view const name = word.substr(0, dash);
  side_format side;
  if (name.starts_with(adaptive::name)) {
    side.id = format_id_of<adaptive>;
    bool const known = parse_number(name.substr(adaptive::name.size()), side.bits) && side.bits >= 1 &&
                       side.bits <= most_adaptive_bits;
    require(known, errc::bad_format, "format \"", word, "\", expected the bits of an element after adaptive, 1 to ",
            most_adaptive_bits);
  } else {
    side.id = parse_format(name);
  }
  bool const is_exact = side.id == format_id_of<passthrough>;
  if (outliers && !is_exact) side.outlier_fraction = *outliers;
  if (dash != word.npos) {
    double percent = 0;
    bool const known = word.ends_with('%') && parse_number(word.substr(dash + 1, word.size() - dash - 2), percent) &&
                       percent >= 0 && percent <= 50 && !is_exact;
    require(known, errc::bad_format, "format \"", word,
            "\", expected a percentage of outliers up to 50 after a format below 16 bits, as in nuq3-1%");
    side.outlier_fraction = percent / 100;
  }
  return side;
}

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

std::string to_string(side_format const& format) {
  std::string const name = to_string(format.id) + (format.by_channel() ? text(format.bits) : "");
  return format.outlier_fraction > 0 ? text(name, '-', 100 * format.outlier_fraction, '%') : name;
}

std::string to_string(cache_format const& format) {
  return format.is_one_spec() ? to_string(format.key) : to_string(format.key) + "/" + to_string(format.value);
}

cache_format parse_cache_format(std::string_view text, std::optional<double> outliers) {
  auto const slash = text.find('/');
  side_format const key = parse_side(text.substr(0, slash), outliers);
  cache_format const format{key, slash == text.npos ? key : parse_side(text.substr(slash + 1), outliers)};
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
