#include "runtime/artifact_model.hpp"

#include "kvquant/core/error.hpp"

namespace kvquant::runtime {

void require_made_for(std::filesystem::path const& path, artifact_info const& info, model_config const& config,
                      std::string const& model_hash) {
  try {
    kvquant::require_made_for(info, config.name, model_hash, shape_of(config));
  } catch (error const& failure) {
    throw error{failure.code, text(path.string(), ": ", failure.what())};
  }
}

}  // namespace kvquant::runtime
