#include "runtime/simulation/artifact_simulator.hpp"

#include "engines/artifact_label.hpp"
#include "kvquant/calibrate/artifact_io.hpp"
#include "runtime/artifact_model.hpp"

namespace kvquant::runtime {

std::unique_ptr<simulator> simulate_artifact(std::filesystem::path const& path, model_config const& config,
                                             std::string const& model_hash, executor_ref executor,
                                             std::optional<std::size_t> sinks) {
  std::unique_ptr<simulator> result;
  visit_artifact(path, [&]<class S>(artifact<S> const& it) {
    require_made_for(path, it.info, config, model_hash);
    result = std::make_unique<artifact_simulator<S>>(it, label_of(it.info), executor, sinks);
  });
  return result;
}

}  // namespace kvquant::runtime
