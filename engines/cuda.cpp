#include "backends/cuda/backend.hpp"
#include "kvquant/engine.hpp"

namespace kvquant {

template std::unique_ptr<engine> make_engine<cuda::backend>(any_artifact const&, cache_options const&);

}  // namespace kvquant
