#include "runtime/kernels.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/kernels.cpp"
#include <hwy/foreach_target.h>
// Must come after foreach_target.h.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

HWY_BEFORE_NAMESPACE();
// NOLINTNEXTLINE(modernize-concat-nested-namespaces): HWY_NAMESPACE is another one for each target
namespace kvquant::runtime::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using floats = hn::ScalableTag<float>;
using one_float = hn::CappedTag<float, 1>;

/// Calls `f(d, i)` for whole vectors, then for single elements.
template <class F>
HWY_INLINE void for_lanes(std::size_t n, F&& f) {
  floats const d;
  std::size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) f(d, i);
  for (; i < n; ++i) f(one_float(), i);
}

/// Sums `f(d, i)`. Runs of 1024 are summed in single precision, the runs in double.
template <class F>
HWY_INLINE double sum_lanes(std::size_t n, F&& f) {
  constexpr std::size_t run = 1024;
  floats const d;
  double total = 0;
  for (std::size_t begin = 0; begin < n; begin += run) {
    std::size_t const end = std::min(n, begin + run);
    auto sum = hn::Zero(d);
    std::size_t i = begin;
    for (; i + hn::Lanes(d) <= end; i += hn::Lanes(d)) sum = hn::Add(sum, f(d, i));
    float rest = hn::GetLane(hn::SumOfLanes(d, sum));
    for (; i < end; ++i) rest += hn::GetLane(f(one_float(), i));
    total += rest;
  }
  return total;
}

HWY_INLINE float max_of(float const* x, std::size_t n) {
  floats const d;
  auto most = hn::Set(d, -std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) most = hn::Max(most, hn::LoadU(d, x + i));
  float result = hn::GetLane(hn::MaxOfLanes(d, most));
  for (; i < n; ++i) result = std::max(result, x[i]);
  return result;
}

HWY_INLINE float inverse_rms(float const* x, std::size_t n, float epsilon) {
  double const squares = sum_lanes(n, [x](auto d, std::size_t i) HWY_ATTR {
    auto const v = hn::LoadU(d, x + i);
    return hn::Mul(v, v);
  });
  return static_cast<float>(1 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(epsilon)));
}

void RmsNorm(float const* x, float const* weight, float epsilon, float* out, std::size_t n) {
  float const scale = inverse_rms(x, n, epsilon);
  for_lanes(n, [=](auto d, std::size_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale)), hn::LoadU(d, weight + i)), d, out + i);
  });
}

void RmsNormBackward(float const* x, float const* weight, float epsilon, float const* d_out, float* dx, std::size_t n) {
  // y = r w x with r = (mean x² + ε)^(−1/2), so dx = r (w dy − x r² mean(w dy x)).
  float const r = inverse_rms(x, n, epsilon);
  double const along = sum_lanes(n, [=](auto d, std::size_t i) HWY_ATTR {
    return hn::Mul(hn::Mul(hn::LoadU(d, weight + i), hn::LoadU(d, d_out + i)), hn::LoadU(d, x + i));
  });
  auto const pull = static_cast<float>(along / static_cast<double>(n) * r * r);
  for_lanes(n, [=](auto d, std::size_t i) HWY_ATTR {
    auto const wdy = hn::Mul(hn::LoadU(d, weight + i), hn::LoadU(d, d_out + i));
    auto const step = hn::NegMulAdd(hn::LoadU(d, x + i), hn::Set(d, pull), wdy);
    hn::StoreU(hn::MulAdd(step, hn::Set(d, r), hn::LoadU(d, dx + i)), d, dx + i);
  });
}

void Softmax(float* x, std::size_t n) {
  float const most = max_of(x, n);
  double const sum = sum_lanes(n, [=](auto d, std::size_t i) HWY_ATTR {
    auto const p = hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), hn::Set(d, most)));
    hn::StoreU(p, d, x + i);
    return p;
  });
  auto const scale = static_cast<float>(1 / sum);
  for_lanes(n, [=](auto d, std::size_t i)
                   HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale)), d, x + i); });
}

void SoftmaxBackward(float const* p, float* dp, std::size_t n) {
  auto const along = static_cast<float>(
      sum_lanes(n, [=](auto d, std::size_t i) HWY_ATTR { return hn::Mul(hn::LoadU(d, p + i), hn::LoadU(d, dp + i)); }));
  for_lanes(n, [=](auto d, std::size_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(d, p + i), hn::Sub(hn::LoadU(d, dp + i), hn::Set(d, along))), d, dp + i);
  });
}

/// The exponential of a positive number may leave its range, so both branches use that of −|x|.
template <class D, class V>
HWY_INLINE V sigmoid(D d, V x) {
  auto const one = hn::Set(d, 1.0f), e = hn::Exp(d, hn::Neg(hn::Abs(x)));
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one), hn::Add(one, e));
}

/// Both activations are x · sigmoid(inner(x)).
struct silu_inner {
  template <class D, class V>
  static HWY_INLINE V value(D, V x) {
    return x;
  }
  template <class D, class V>
  static HWY_INLINE V slope(D d, V) {
    return hn::Set(d, 1.0f);
  }
};

/// GELU in its tanh form, (1 + tanh z) / 2 = sigmoid(2 z) with z = sqrt(2 / π) (x + 0.044715 x³): arXiv 1606.08415.
struct gelu_inner {
  static constexpr float factor = 1.5957691216f, cubic = 0.044715f;  // 2 sqrt(2 / π)

  template <class D, class V>
  static HWY_INLINE V value(D d, V x) {
    return hn::Mul(hn::Set(d, factor), hn::MulAdd(hn::Mul(hn::Set(d, cubic), hn::Mul(x, x)), x, x));
  }
  template <class D, class V>
  static HWY_INLINE V slope(D d, V x) {
    return hn::MulAdd(hn::Mul(hn::Set(d, 3 * cubic * factor), x), x, hn::Set(d, factor));
  }
};

template <class Inner>
HWY_INLINE void gate_multiply(float const* gate, float const* up, float* out, std::size_t n) {
  for_lanes(n, [=](auto d, std::size_t i) HWY_ATTR {
    auto const g = hn::LoadU(d, gate + i);
    hn::StoreU(hn::Mul(hn::Mul(g, sigmoid(d, Inner::value(d, g))), hn::LoadU(d, up + i)), d, out + i);
  });
}

template <class Inner>
HWY_INLINE void gate_multiply_backward(float* gate, float* up, float const* d_out, std::size_t n) {
  for_lanes(n, [=](auto d, std::size_t i) HWY_ATTR {
    auto const g = hn::LoadU(d, gate + i), u = hn::LoadU(d, up + i), dy = hn::LoadU(d, d_out + i);
    auto const s = sigmoid(d, Inner::value(d, g)), y = hn::Mul(g, s);
    // y' = s + y (1 − s) inner'
    auto const slope = hn::MulAdd(y, hn::Mul(hn::Sub(hn::Set(d, 1.0f), s), Inner::slope(d, g)), s);
    hn::StoreU(hn::Mul(hn::Mul(dy, u), slope), d, gate + i);
    hn::StoreU(hn::Mul(dy, y), d, up + i);
  });
}

void SiluMultiply(float const* gate, float const* up, float* out, std::size_t n) {
  gate_multiply<silu_inner>(gate, up, out, n);
}
void SiluMultiplyBackward(float* gate, float* up, float const* d_out, std::size_t n) {
  gate_multiply_backward<silu_inner>(gate, up, d_out, n);
}
void GeluMultiply(float const* gate, float const* up, float* out, std::size_t n) {
  gate_multiply<gelu_inner>(gate, up, out, n);
}
void GeluMultiplyBackward(float* gate, float* up, float const* d_out, std::size_t n) {
  gate_multiply_backward<gelu_inner>(gate, up, d_out, n);
}

double LogSumExp(float const* x, std::size_t n) {
  float const most = max_of(x, n);
  double const sum = sum_lanes(
      n, [=](auto d, std::size_t i) HWY_ATTR { return hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), hn::Set(d, most))); });
  return static_cast<double>(most) + std::log(sum);
}

double KlDivergence(float const* x, float lse_x, float const* y, float shift, std::size_t n) {
  // Σ p ((x − y) − (lse_x − lse_y)); the difference of scores is exact enough, that of the two logarithms comes as
  // `shift`.
  return sum_lanes(n, [=](auto d, std::size_t i) HWY_ATTR {
    auto const a = hn::LoadU(d, x + i), b = hn::LoadU(d, y + i);
    auto const p = hn::Exp(d, hn::Sub(a, hn::Set(d, lse_x)));
    return hn::Mul(p, hn::Sub(hn::Sub(a, b), hn::Set(d, shift)));
  });
}

void ScaledProbabilities(float* x, float lse, float scale, std::size_t n) {
  for_lanes(n, [=](auto d, std::size_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), hn::Set(d, lse))), hn::Set(d, scale)), d, x + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace kvquant::runtime::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvquant::runtime::kernels {

HWY_EXPORT(RmsNorm);
HWY_EXPORT(RmsNormBackward);
HWY_EXPORT(Softmax);
HWY_EXPORT(SoftmaxBackward);
HWY_EXPORT(SiluMultiply);
HWY_EXPORT(SiluMultiplyBackward);
HWY_EXPORT(GeluMultiply);
HWY_EXPORT(GeluMultiplyBackward);
HWY_EXPORT(LogSumExp);
HWY_EXPORT(KlDivergence);
HWY_EXPORT(ScaledProbabilities);

void rms_norm(std::span<float const> x, std::span<float const> weight, float epsilon, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x.data(), weight.data(), epsilon, out.data(), x.size());
}
void rms_norm_backward(std::span<float const> x, std::span<float const> weight, float epsilon,
                       std::span<float const> d_out, std::span<float> dx) {
  HWY_DYNAMIC_DISPATCH(RmsNormBackward)(x.data(), weight.data(), epsilon, d_out.data(), dx.data(), x.size());
}
void softmax(std::span<float> scores) { HWY_DYNAMIC_DISPATCH(Softmax)(scores.data(), scores.size()); }
void softmax_backward(std::span<float const> p, std::span<float> dp) {
  HWY_DYNAMIC_DISPATCH(SoftmaxBackward)(p.data(), dp.data(), p.size());
}
void silu_multiply(std::span<float const> gate, std::span<float const> up, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(SiluMultiply)(gate.data(), up.data(), out.data(), gate.size());
}
void silu_multiply_backward(std::span<float> gate, std::span<float> up, std::span<float const> d_out) {
  HWY_DYNAMIC_DISPATCH(SiluMultiplyBackward)(gate.data(), up.data(), d_out.data(), gate.size());
}
void gelu_multiply(std::span<float const> gate, std::span<float const> up, std::span<float> out) {
  HWY_DYNAMIC_DISPATCH(GeluMultiply)(gate.data(), up.data(), out.data(), gate.size());
}
void gelu_multiply_backward(std::span<float> gate, std::span<float> up, std::span<float const> d_out) {
  HWY_DYNAMIC_DISPATCH(GeluMultiplyBackward)(gate.data(), up.data(), d_out.data(), gate.size());
}
double log_sum_exp(std::span<float const> x) { return HWY_DYNAMIC_DISPATCH(LogSumExp)(x.data(), x.size()); }
double kl_divergence(std::span<float const> x, double lse_x, std::span<float const> y, double lse_y) {
  return HWY_DYNAMIC_DISPATCH(KlDivergence)(x.data(), static_cast<float>(lse_x), y.data(),
                                            static_cast<float>(lse_x - lse_y), x.size());
}
void scaled_probabilities(std::span<float> x, double lse, float scale) {
  HWY_DYNAMIC_DISPATCH(ScaledProbabilities)(x.data(), static_cast<float>(lse), scale, x.size());
}

}  // namespace kvquant::runtime::kernels
#endif
