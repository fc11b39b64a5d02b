#pragma once
/// \file
/// Rotary position embedding: R(p) turns the i-th pair of a head's channels by the angle p · f_i.
///
/// Numerics. The inverse frequencies f_i are rounded once, to double (relative error below 2e-15). The product p · f_i
/// is then carried exactly, as an unevaluated sum of two doubles, into cosine and sine, which are off by at most 4e-16
/// whatever the position; angles in binary32 are off by 0.39 at 10M tokens. So R(p) = R(b) R(p − b) holds at any p, and
/// a page can be read with one small table: with B the position of its first token,
///
///     score[j] = (R(p) q) · (R(B + j) k_j) = (R(p − B) q) · (R(j) k_j),   0 ≤ j < page tokens
///
/// where `angle_table(0, page_tokens)` serves every page. The attention factor (YaRN) multiplies each rotated vector,
/// in both forms once on each side.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <vector>

#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/rope/rope_config.hpp"

namespace kvquant {

/// Cosine and sine of every pair at one position, the attention factor included: [rotary_dim / 2] each.
template <std::floating_point T>
struct rope_angles {
  std::span<T const> cos;  ///< [rotary_dim / 2]
  std::span<T const> sin;  ///< [rotary_dim / 2]
};

/// The two channels of a head that RoPE turns together; those that it does not turn are paired with their neighbours.
struct channel_pair {
  std::size_t first, second;  ///< of a head
};

/// Pair number `pair`, from 0 to head_dim / 2 − 1.
constexpr channel_pair pair_of(rope_pairing pairing, std::size_t rotary_dim, std::size_t pair) {
  std::size_t const turned = rotary_dim / 2;
  if (pair < turned && pairing == rope_pairing::half_split) return {pair, pair + turned};
  return {2 * pair, 2 * pair + 1};
}

/// The angles of a run of positions.
template <std::floating_point T>
class rope_angle_table {
 public:
  /// Zeros; `rope::angle_table` fills it.
  rope_angle_table(std::int64_t first, std::size_t count, std::size_t pairs)
      : first_(first), count_(count), pairs_(pairs), cos_(count * pairs), sin_(count * pairs) {}

  /// Position of the first row.
  std::int64_t first() const { return first_; }
  /// Positions.
  std::size_t count() const { return count_; }
  /// rotary_dim / 2
  std::size_t pairs() const { return pairs_; }

  /// The angles at position `first() + i`.
  rope_angles<T> operator[](std::size_t i) const {
    KVQ_ASSERT(i < count_);
    return {cos().subspan(i * pairs_, pairs_), sin().subspan(i * pairs_, pairs_)};
  }
  /// [count][pairs]
  std::span<T const> cos() const { return cos_; }
  /// [count][pairs]
  std::span<T const> sin() const { return sin_; }

 private:
  friend class rope;

  std::int64_t first_;
  std::size_t count_, pairs_;
  std::vector<T> cos_, sin_;
};

/// Rotary position embedding (arXiv 2104.09864) of one head, with the scalings that models were published with.
class rope {
 public:
  /// Positions from −max_position to max_position; differences of positions are positions too.
  static constexpr std::int64_t max_position = std::int64_t{1} << 34;

  /// Throws `bad_shape` or `bad_value` naming the member of `config` that cannot be.
  rope(rope_config const& config, int head_dim);

  /// Channels of a head.
  int head_dim() const { return head_dim_; }
  /// Channels that are rotated: the first ones of a head. 0 where there is no rotation.
  int rotary_dim() const { return 2 * static_cast<int>(inverse_frequencies_.size()); }
  /// Which channels turn together.
  rope_pairing pairing() const { return pairing_; }

  /// Radians per token, scaling included: [rotary_dim / 2]
  std::span<double const> inverse_frequencies() const { return inverse_frequencies_; }
  /// What multiplies every rotated channel: 1 but for YaRN.
  double attention_factor() const { return attention_factor_; }

  /// The angles of positions first … first + count − 1, evaluated in double and rounded to T.
  template <std::floating_point T = float>
  rope_angle_table<T> angle_table(std::int64_t first, std::size_t count) const;

  /// The angles of one position, into memory of the caller: `cos`, `sin` [rotary_dim / 2].
  template <std::floating_point T>
  void angles_at(std::int64_t position, std::span<T> cos, std::span<T> sin) const;

  /// head ← attention_factor · R(position) head. `head`: [head_dim]; channels from rotary_dim on stay as they are.
  template <std::floating_point T>
  void rotate(std::span<T> head, std::int64_t position) const {
    rotate(head, angle_table<T>(position, 1)[0]);
  }
  /// The same by angles of a table.
  template <std::floating_point T>
  void rotate(std::span<T> head, rope_angles<T> angles) const {
    turn(head, angles, T{1});
  }

  /// head ← attention_factor · R(position)ᵀ head: the transpose of `rotate`, which takes the gradient with respect to
  /// its result to the one with respect to its argument. Its inverse as well if the attention factor is 1.
  template <std::floating_point T>
  void rotate_back(std::span<T> head, std::int64_t position) const {
    rotate_back(head, angle_table<T>(position, 1)[0]);
  }
  /// The same by angles of a table.
  template <std::floating_point T>
  void rotate_back(std::span<T> head, rope_angles<T> angles) const {
    turn(head, angles, T{-1});
  }

 private:
  template <class T>
  void turn(std::span<T> head, rope_angles<T> angles, T direction) const;

  int head_dim_;
  rope_pairing pairing_;
  double attention_factor_ = 1;
  std::vector<double> inverse_frequencies_;
};

namespace detail {

struct cos_sin {
  double cos, sin;
};

/// Of the exact product `position · frequency`; |position| ≤ rope::max_position, frequency ≤ 2π.
inline cos_sin cos_sin_of_product(double position, double frequency) {
  double const angle = position * frequency;
  double const rest = std::fma(position, frequency, -angle);  // at most 2^-17: the cubic term is below 2^-53
  double const c = std::cos(angle), s = std::sin(angle), rest_cos = 1 - rest * rest / 2;
  return {c * rest_cos - s * rest, s * rest_cos + c * rest};
}

inline void require_positive(double x, char const* what) {
  require(std::isfinite(x) && x > 0, errc::bad_value, "rope: ", what, " is ", x, ", expected a finite number above 0");
}

inline int rotary_dim_of(rope_config const& config, int head_dim) {
  int const rotary_dim = config.rotary_dim == 0 ? head_dim : config.rotary_dim;
  require(rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim, errc::bad_shape, "rope: rotary_dim is ",
          rotary_dim, ", expected an even number from 2 to head_dim, ", head_dim);
  return rotary_dim;
}

/// theta^(−2i / rotary_dim), divided by the per-frequency factors.
inline std::vector<double> unscaled_frequencies(rope_config const& config, double theta, int rotary_dim) {
  std::vector<double> frequencies(static_cast<std::size_t>(rotary_dim / 2));
  auto const& factors = config.frequency_factors;
  require(factors.empty() || factors.size() == frequencies.size(), errc::bad_shape, "rope: ", factors.size(),
          " frequency_factors, expected rotary_dim / 2 = ", frequencies.size(), " or none");
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(theta, -2.0 * static_cast<double>(i) / rotary_dim);
    if (factors.empty()) continue;
    require_positive(factors[i], "a frequency factor");
    frequencies[i] /= static_cast<double>(factors[i]);
  }
  return frequencies;
}

/// Bowen Peng, "NTK-aware scaled RoPE": a base for which the slowest pair turns `factor` times slower and the fastest
/// as before.
inline double ntk_theta(rope_config const& config, int rotary_dim) {
  require(rotary_dim > 2, errc::bad_shape, "rope: ntk scaling needs a rotary_dim above 2");
  return config.theta * std::pow(config.factor, static_cast<double>(rotary_dim) / (rotary_dim - 2));
}

/// Llama 3.1: wavelengths beyond original_context / low_frequency_factor are interpolated, those below original_context
/// / high_frequency_factor are kept, and the ones between blend linearly in rotations per context.
inline void scale_llama3(rope_config const& config, std::vector<double>& frequencies) {
  require_positive(config.original_context, "original_context");
  require_positive(config.low_frequency_factor, "low_frequency_factor");
  require_positive(config.high_frequency_factor, "high_frequency_factor");
  require(config.low_frequency_factor < config.high_frequency_factor, errc::bad_value, "rope: low_frequency_factor is ",
          config.low_frequency_factor, ", expected less than high_frequency_factor, ", config.high_frequency_factor);
  for (double& frequency : frequencies) {
    double const rotations = config.original_context * frequency / (2 * std::numbers::pi);
    double const kept = std::clamp(
        (rotations - config.low_frequency_factor) / (config.high_frequency_factor - config.low_frequency_factor), 0.0,
        1.0);
    frequency *= kept + (1 - kept) / config.factor;
  }
}

/// YaRN (arXiv 2309.00071, "NTK-by-parts"), with the ramp of the authors' code: linear in the index of the pair,
/// between the whole indices that enclose beta_fast and beta_slow rotations per original context.
inline void scale_yarn(rope_config const& config, int rotary_dim, std::vector<double>& frequencies) {
  require_positive(config.original_context, "original_context");
  require_positive(config.beta_slow, "beta_slow");
  require_positive(config.beta_fast, "beta_fast");
  require(config.beta_slow <= config.beta_fast, errc::bad_value, "rope: beta_slow is ", config.beta_slow,
          ", expected at most beta_fast, ", config.beta_fast);
  require(config.theta > 1, errc::bad_value, "rope: theta is ", config.theta, ", yarn expects more than 1");
  auto const index_turning = [&](double rotations) {
    return rotary_dim * std::log(config.original_context / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(config.theta));
  };
  double const first = std::max(std::floor(index_turning(config.beta_fast)), 0.0);
  double const last = std::min(std::ceil(index_turning(config.beta_slow)), rotary_dim - 1.0);
  double const width = std::max(last - first, 0.001);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    double const interpolated = std::clamp((static_cast<double>(i) - first) / width, 0.0, 1.0);
    frequencies[i] *= 1 - interpolated + interpolated / config.factor;
  }
}

inline double yarn_attention_factor(rope_config const& config) {
  if (config.attention_factor == 0) return config.factor > 1 ? 0.1 * std::log(config.factor) + 1 : 1.0;
  require_positive(config.attention_factor, "attention_factor");
  return config.attention_factor;
}

inline std::vector<double> scaled_frequencies(rope_config const& config, int rotary_dim) {
  require_positive(config.theta, "theta");
  if (config.scaling != rope_scaling::none) require_positive(config.factor, "factor");
  double const theta = config.scaling == rope_scaling::ntk ? ntk_theta(config, rotary_dim) : config.theta;
  auto frequencies = unscaled_frequencies(config, theta, rotary_dim);
  switch (config.scaling) {
    case rope_scaling::none:
    case rope_scaling::ntk: break;
    case rope_scaling::linear:
      for (double& frequency : frequencies) frequency /= config.factor;
      break;
    case rope_scaling::llama3: scale_llama3(config, frequencies); break;
    case rope_scaling::yarn: scale_yarn(config, rotary_dim, frequencies); break;
    default: throw error{errc::unsupported, text("rope: unknown scaling, number ", static_cast<int>(config.scaling))};
  }
  for (double const frequency : frequencies)
    require(frequency > 0 && frequency <= 2 * std::numbers::pi, errc::bad_value, "rope: an inverse frequency is ",
            frequency, ", expected above 0 and at most 2 pi");
  return frequencies;
}

}  // namespace detail

inline rope::rope(rope_config const& config, int head_dim) : head_dim_(head_dim), pairing_(config.pairing) {
  require(head_dim > 0, errc::bad_shape, "rope: head_dim is ", head_dim, ", expected 1 or more");
  if (!config.enabled) return;
  require(pairing_ == rope_pairing::half_split || pairing_ == rope_pairing::interleaved, errc::unsupported,
          "rope: unknown pairing, number ", static_cast<int>(pairing_));
  inverse_frequencies_ = detail::scaled_frequencies(config, detail::rotary_dim_of(config, head_dim));
  if (config.scaling == rope_scaling::yarn) attention_factor_ = detail::yarn_attention_factor(config);
}

template <std::floating_point T>
rope_angle_table<T> rope::angle_table(std::int64_t first, std::size_t count) const {
  std::size_t const pairs = inverse_frequencies_.size();
  bool const in_range =
      first >= -max_position && first <= max_position && count <= static_cast<std::uint64_t>(max_position - first) + 1;
  require(in_range, errc::bad_value, "rope: ", count, " positions from ", first, ", expected them within ±",
          max_position);
  require(pairs == 0 || count <= std::numeric_limits<std::size_t>::max() / sizeof(T) / pairs, errc::bad_shape,
          "rope: a table of ", count, " positions x ", pairs, " pairs is too large");
  rope_angle_table<T> table(first, count, pairs);
  if (pairs == 0) return table;
  for (std::size_t row = 0; row < count; ++row)
    angles_at(first + static_cast<std::int64_t>(row), std::span(table.cos_).subspan(row * pairs, pairs),
              std::span(table.sin_).subspan(row * pairs, pairs));
  return table;
}

template <std::floating_point T>
void rope::angles_at(std::int64_t position, std::span<T> cos, std::span<T> sin) const {
  std::size_t const pairs = inverse_frequencies_.size();
  require(position >= -max_position && position <= max_position, errc::bad_value, "rope: position ", position,
          ", expected it within ±", max_position);
  require(cos.size() == pairs && sin.size() == pairs, errc::bad_shape, "rope: room for ", cos.size(), " cosines and ",
          sin.size(), " sines, expected ", pairs, " of each");
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    auto const [c, s] = detail::cos_sin_of_product(static_cast<double>(position), inverse_frequencies_[pair]);
    cos[pair] = static_cast<T>(attention_factor_ * c);
    sin[pair] = static_cast<T>(attention_factor_ * s);
  }
}

template <class T>
void rope::turn(std::span<T> head, rope_angles<T> angles, T direction) const {
  std::size_t const pairs = inverse_frequencies_.size();
  require(
      head.size() == static_cast<std::size_t>(head_dim_) && angles.cos.size() == pairs && angles.sin.size() == pairs,
      errc::bad_shape, "rope: a head of ", head.size(), " channels, ", angles.cos.size(), " cosines and ",
      angles.sin.size(), " sines, expected ", head_dim_, " channels and ", pairs, " of each");
  auto const turn_pair = [&](std::size_t i, T& a, T& b) {
    T const c = angles.cos[i], s = direction * angles.sin[i], old_a = a;
    a = old_a * c - b * s;
    b = old_a * s + b * c;
  };
  if (pairing_ == rope_pairing::half_split)
    for (std::size_t i = 0; i < pairs; ++i) turn_pair(i, head[i], head[i + pairs]);
  else
    for (std::size_t i = 0; i < pairs; ++i) turn_pair(i, head[2 * i], head[2 * i + 1]);
}

}  // namespace kvquant
