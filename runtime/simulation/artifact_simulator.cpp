#include "runtime/simulation/artifact_simulator.hpp"

#include "kvquant/calibrate/artifact_io.hpp"

namespace kvquant::runtime {

namespace {

/// "nuq3-1%", with what differs from the defaults: "nuq3-1%, 0 sinks, post-RoPE".
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

}  // namespace

std::unique_ptr<simulator> simulate_artifact(std::filesystem::path const& path, model_config const& config,
                                             std::string const& model_hash, executor_ref executor) {
  std::unique_ptr<simulator> result;
  visit_artifact(path, [&]<class S>(artifact<S> const& it) {
    try {
      require_made_for(it.info, config.name, model_hash, shape_of(config));
    } catch (error const& failure) {
      throw error{failure.code, text(path.string(), ": ", failure.what())};
    }
    result = std::make_unique<artifact_simulator<S>>(it, label_of(it.info), executor);
  });
  return result;
}

}  // namespace kvquant::runtime
