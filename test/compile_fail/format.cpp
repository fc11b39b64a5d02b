#include <cstdint>
#include <span>
#include <string_view>

#include "kvquant/format/format.hpp"

namespace {

/// Signs only.
struct whole {
  static constexpr std::string_view name = "sign";
  static constexpr int bits = 1;
  static constexpr bool fitted = false;
  static constexpr bool scaled = true;
  using code_type = std::uint8_t;
  struct table {};
  static table default_table() { return {}; }
  static code_type encode(table const&, float x) { return x > 0 ? 1 : 0; }
  static float decode(table const&, code_type code) { return code != 0 ? 1.0f : -1.0f; }
};

struct without_encode : whole {
  static void encode() = delete;
};
struct without_decode : whole {
  static void decode() = delete;
};
struct without_name : whole {
  static void name() {}
};
struct of_no_bits : whole {
  static constexpr int bits = 0;
};
struct wider_than_its_code : whole {
  static constexpr int bits = 9;
};
struct scaled_in_words : whole {
  static constexpr std::string_view scaled = "no";
};
struct fitted_without_make_table : whole {
  static constexpr bool fitted = true;
};
struct fixed_without_table : whole {
  static void default_table() {}
};
struct of_signed_codes : whole {
  using code_type = std::int8_t;
};
struct decoding_to_double : whole {
  static double decode(table const&, code_type) { return 0; }
};

template <kvquant::Format F>
constexpr int width() {
  return F::bits;
}

}  // namespace

static_assert(width<whole>() == 1);
#if CASE == 1  // encode
static_assert(width<without_encode>());
#elif CASE == 2   // decode
static_assert(width<without_decode>());
#elif CASE == 3   // name
static_assert(width<without_name>());
#elif CASE == 4   // bits
static_assert(width<of_no_bits>());
#elif CASE == 5   // bits
static_assert(width<wider_than_its_code>());
#elif CASE == 6   // make_table
static_assert(width<fitted_without_make_table>());
#elif CASE == 7   // default_table
static_assert(width<fixed_without_table>());
#elif CASE == 8   // code_type
static_assert(width<of_signed_codes>());
#elif CASE == 9   // decode
static_assert(width<decoding_to_double>());
#elif CASE == 10  // scaled
static_assert(width<scaled_in_words>());
#endif
