/// \file
/// A datatype of one's own: powers of two, as a header outside the library would define it. All that is written for
/// formats works with it at once.

#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

#include "kvquant/kvquant.hpp"

// [doc:format]
/// ±1, ±1/2, ±1/4, ±1/8: small values keep their relative precision.
struct power_of_two {
  static constexpr std::string_view name = "pow2_";
  static constexpr int bits = 3;
  static constexpr bool fitted = false;  // its levels do not come from calibration
  static constexpr bool scaled = true;   // and lie between −1 and 1: a range takes them to where values are
  using code_type = std::uint8_t;
  using table = kvquant::level_table<bits>;

  static constexpr table default_table() {
    constexpr std::array<float, 8> levels = {-1, -0.5f, -0.25f, -0.125f, 0.125f, 0.25f, 0.5f, 1};
    return kvquant::make_level_table<bits>(levels, levels);
  }
  KVQ_HD static constexpr code_type encode(table const& levels, float x) noexcept { return levels.encode(x); }
  KVQ_HD static constexpr float decode(table const& levels, code_type code) noexcept { return levels.decode(code); }
};
static_assert(kvquant::Format<power_of_two>);
// [/doc]

int main() {
  // [doc:use]
  std::vector<float> const token = {0.9f, -0.3f, 0.12f, -0.06f, 0.5f, -1.0f, 0.25f, 1.0f};
  kvquant::value_side<power_of_two> const values(token.size(), power_of_two::default_table(), 0.0);
  auto selector = values.make_selector();
  std::vector<std::uint8_t> codes(token.size());
  auto const map = kvquant::affine_of(values.quantize(token, codes, selector, [](kvquant::outlier) {}));
  // [/doc]
  float largest = 0;
  for (std::size_t i = 0; i < token.size(); ++i) {
    float const restored = values.decode(map, codes[i]);
    std::printf("%6.3f -> %d -> %6.3f\n", static_cast<double>(token[i]), codes[i], static_cast<double>(restored));
    largest = std::max(largest, std::abs(restored - token[i]));
  }
  return kvquant::spec<power_of_two, kvquant::nuq<4>>::page_tokens == 64 && largest <= 0.25f ? 0 : 1;
}
