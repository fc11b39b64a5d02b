#pragma once
/// \file
/// What a datatype is: an empty struct of static functions that turn a normalised number into a code and back.

#include <concepts>
#include <span>
#include <string_view>
#include <type_traits>

namespace kvquant {

/// The constants of a datatype. Its name, as in "nuq3", is `name` followed by `bits`. `fitted`: its levels come from
/// calibration. `scaled`: a code stands for a number between −1 and 1, which a range takes to where the values are; if
/// not, for the value itself, and the value has no range and no outliers.
template <class F>
concept HasNameAndWidth = requires {
  { F::name } -> std::convertible_to<std::string_view>;
  { F::bits } -> std::convertible_to<int>;
  requires std::bool_constant<(F::bits >= 1 && F::bits <= 16)>::value;
  { F::fitted } -> std::convertible_to<bool>;
  { F::scaled } -> std::convertible_to<bool>;
};

/// Codes are unsigned and tables plain bytes, so that both can be stored, sent, and read by a device.
template <class F>
concept HasPlainTypes = std::unsigned_integral<typename F::code_type> &&
    std::is_trivially_copyable_v<typename F::table> &&(static_cast<int>(8 * sizeof(typename F::code_type)) >= F::bits);

/// `encode` gives the code whose level is nearest to `x`; of two levels as near, the lower; of equal levels, the first.
/// Numbers beyond the levels, infinities too, get the outermost one. `x` is no NaN: whoever takes input rejects it.
/// Codes are below 2^bits. Both functions are `KVQ_HD constexpr`.
template <class F>
concept HasCodec = requires(typename F::table const& table, float x, typename F::code_type code) {
  { F::encode(table, x) } -> std::same_as<typename F::code_type>;
  { F::decode(table, code) } -> std::same_as<float>;
};

/// Levels come from calibration: 2^bits levels to compare with, never falling, and as many to decode to (Q-Norm moves
/// the latter); of formats that are `by_channel`, 2^width. `make_table` throws `bad_shape` or `bad_value` for anything
/// else.
template <class F>
concept MakesTable = requires(std::span<float const> levels) {
  { F::make_table(levels, levels) } -> std::same_as<typename F::table>;
};

/// Levels are part of the datatype.
template <class F>
concept HasDefaultTable = requires {
  { F::default_table() } -> std::same_as<typename F::table>;
};

/// A datatype: a struct of static functions, with levels of its own (`HasDefaultTable`) or from calibration
/// (`MakesTable`).
template <class F>
concept Format = HasNameAndWidth<F> && HasPlainTypes<F> && HasCodec<F> &&
    ((F::fitted && MakesTable<F>) || (!F::fitted && HasDefaultTable<F>));

/// Whether each channel has a width, levels and a range of its own, on both sides: `F::by_channel`, for formats that
/// name it. `F::bits` is the widest then, and a table that of one channel.
template <class F>
inline constexpr bool is_by_channel = false;
/// The same of formats that say so.
template <class F>
  requires requires { F::by_channel; }
inline constexpr bool is_by_channel<F> = F::by_channel;

}  // namespace kvquant
