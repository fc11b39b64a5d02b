#include "backends/cpu/backend.hpp"
#include "kvquant/engine.hpp"

namespace kvquant {

// Both have the same pages, and so the same caches.
template std::unique_ptr<engine> make_engine<cpu::backend>(any_artifact const&, cache_options const&);
template std::unique_ptr<engine> make_engine<cpu::float_backend>(any_artifact const&, cache_options const&);

}  // namespace kvquant
