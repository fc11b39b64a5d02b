#include "tools/plan/quantity.hpp"

#include <array>
#include <charconv>

#include "kvquant/core/error.hpp"

namespace kvquant::plan {

namespace {

/// The number that `text` begins with; the rest is its unit.
template <class T>
bool split_number(std::string_view text, T& number, std::string_view& unit) {
  auto const [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc{}) return false;
  unit = text.substr(static_cast<std::size_t>(end - text.data()));
  return true;
}

struct byte_unit {
  std::string_view name;
  double bytes;
};
constexpr std::array<byte_unit, 10> byte_units = {{{"", 1},
                                                   {"B", 1},
                                                   {"kB", 1e3},
                                                   {"MB", 1e6},
                                                   {"GB", 1e9},
                                                   {"TB", 1e12},
                                                   {"KiB", 0x1p10},
                                                   {"MiB", 0x1p20},
                                                   {"GiB", 0x1p30},
                                                   {"TiB", 0x1p40}}};

}  // namespace

std::size_t parse_tokens(std::string_view text) {
  std::size_t count = 0, unit = 0;
  std::string_view suffix;
  bool const is_number = split_number(text, count, suffix);
  if (is_number && suffix.empty()) unit = 1;
  if (is_number && (suffix == "K" || suffix == "k")) unit = std::size_t{1} << 10;
  if (is_number && (suffix == "M" || suffix == "m")) unit = std::size_t{1} << 20;
  require(unit > 0 && count >= 1 && count <= most_tokens / unit, errc::bad_value, "\"", text,
          "\" tokens, expected 1 to 2^40, as in 1000, 128K (131072) or 1M (1048576)");
  return count * unit;
}

std::size_t parse_bytes(std::string_view text) {
  double number = 0, bytes = 0;
  std::string_view unit;
  if (split_number(text, number, unit)) {
    if (unit.starts_with(' ')) unit.remove_prefix(1);
    for (byte_unit const& it : byte_units)
      if (it.name == unit) bytes = number * it.bytes;
  }
  require(bytes >= 1 && bytes <= 0x1p50, errc::bad_value, "\"", text,
          "\" bytes, expected 1 to 2^50, as in 2GiB, 512MiB or 1.5GB");
  return static_cast<std::size_t>(bytes);
}

}  // namespace kvquant::plan
