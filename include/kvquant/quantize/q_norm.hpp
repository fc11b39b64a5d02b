#pragma once
/// \file
/// Q-Norm: decode levels that give back the mean and the spread which rounding took away (KVQuant, section 3.5).

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvquant {

/// Weighted moments of normalised values: Σ w, Σ w x, Σ w x².
struct moments {
  double mass = 0, first = 0, second = 0;  ///< Σ w, Σ w x, Σ w x²

  /// Counts `x` with `weight`.
  void add(double x, double weight) {
    mass += weight;
    first += weight * x;
    second += weight * x * x;
  }
  /// As if the other's had been added.
  moments& operator+=(moments const& other) {
    mass += other.mass;
    first += other.first;
    second += other.second;
    return *this;
  }
  /// 0 where nothing was added.
  double mean() const { return mass > 0 ? first / mass : 0; }
  /// √(variance); 0 where nothing was added, and where what is left of the difference is its rounding.
  double deviation() const {
    if (!(mass > 0)) return 0;
    double const square = second / mass, variance = square - mean() * mean();
    return variance > 1e-12 * square ? std::sqrt(variance) : 0;
  }
  /// Σ w (x − level)².
  double squared_error(double level) const { return std::max(0.0, second - 2 * level * first + level * level * mass); }
};

/// c' = scale · c + offset.
struct q_norm {
  double scale = 1;   ///< a
  double offset = 0;  ///< b

  /// a · level + b
  double apply(double level) const { return scale * level + offset; }
  /// Whether it changes nothing.
  bool is_identity() const { return scale == 1 && offset == 0; }
};

/// From the moments before and after rounding: c' = c σ₁/σ₂ + (m₁ − m₂ σ₁/σ₂). The identity where rounding leaves no
/// spread.
inline q_norm fit_q_norm(moments const& before, moments const& after) {
  if (!(after.deviation() > 0)) return {};
  double const scale = before.deviation() / after.deviation();
  return {scale, before.mean() - after.mean() * scale};
}

}  // namespace kvquant
