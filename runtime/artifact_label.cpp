#include "runtime/artifact_label.hpp"

#include "kvquant/core/error.hpp"

namespace kvquant::runtime {

std::string label_of(artifact_info const& info) {
  std::string label = info.spec;
  if (info.outlier_fraction_k > 0 || info.outlier_fraction_v > 0) {
    label += text("-", 100 * info.outlier_fraction_k, "%");
    if (info.outlier_fraction_k != info.outlier_fraction_v) label += text("/", 100 * info.outlier_fraction_v, "%");
  }
  if (info.sinks != 1) label += text(", ", info.sinks, " sinks");
  if (info.keys == key_space::post_rope) label += ", post-RoPE keys";
  if (info.weights != fit_weights::fisher) label += text(", weights ", to_string(info.weights));
  if (info.q_norm) label += ", Q-Norm";
  return label;
}

void require_made_for(std::filesystem::path const& path, artifact_info const& info, model_config const& config,
                      std::string const& model_hash) {
  try {
    kvquant::require_made_for(info, config.name, model_hash, shape_of(config));
  } catch (error const& failure) {
    throw error{failure.code, text(path.string(), ": ", failure.what())};
  }
}

}  // namespace kvquant::runtime
