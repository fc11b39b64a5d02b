#include "backends/cpu/generic/backend.hpp"
#include "kvquant/engine.hpp"

namespace kvquant {

template std::unique_ptr<engine> make_engine<cpu::generic::backend>(any_artifact const&, cache_options const&);

}  // namespace kvquant
