#include "engines/side_format.hpp"

#include <charconv>

#include "kvquant/core/error.hpp"

namespace kvquant {

namespace {

bool parse_number(std::string_view text, double& out) {
  auto const [end, failure] = std::from_chars(text.data(), text.data() + text.size(), out);
  return failure == std::errc{} && end == text.data() + text.size();
}

constexpr double most_adaptive_bits = 4.5;  // codes of 4, and slots

}  // namespace

side_format parse_side_format(std::string_view word, std::optional<double> outliers) {
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

std::string to_string(side_format const& format) {
  std::string const name = to_string(format.id) + (format.by_channel() ? text(format.bits) : "");
  return format.outlier_fraction > 0 ? text(name, '-', 100 * format.outlier_fraction, '%') : name;
}

}  // namespace kvquant
