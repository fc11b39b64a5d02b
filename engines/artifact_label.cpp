#include "engines/artifact_label.hpp"

#include <cmath>

#include "kvquant/core/error.hpp"
#include "kvquant/quantize/outlier.hpp"

namespace kvquant {

namespace {

/// Of an element of a page, to two digits.
double bits_of(artifact_info const& info) {
  double const codes = static_cast<double>(info.key_token_bits + info.value_token_bits) / info.shape.head_dim;
  double const slots = 8 * sizeof(outlier) * (info.outlier_fraction_k + info.outlier_fraction_v);
  return std::round(50 * (codes + slots)) / 100;
}

double percent(double fraction) { return std::round(1e4 * fraction) / 100; }

}  // namespace

std::string label_of(artifact_info const& info) {
  std::string label = info.spec;
  if (info.key_token_bits > 0 || info.value_token_bits > 0) label += text(" ", bits_of(info));
  if (info.outlier_fraction_k > 0 || info.outlier_fraction_v > 0) {
    label += text("-", percent(info.outlier_fraction_k), "%");
    if (info.outlier_fraction_k != info.outlier_fraction_v) label += text("/", percent(info.outlier_fraction_v), "%");
  }
  if (info.sinks != 1) label += text(", ", info.sinks, " sinks");
  if (info.keys == key_space::post_rope) label += ", post-RoPE keys";
  if (info.weights != fit_weights::fisher) label += text(", weights ", to_string(info.weights));
  if (info.q_norm) label += ", Q-Norm";
  return label;
}

}  // namespace kvquant
