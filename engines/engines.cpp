#include "engines/engines.hpp"

#include <array>

#include "backends/cpu/backend.hpp"
#include "backends/cpu/generic/backend.hpp"
#if defined(KVQUANT_CUDA)
#include "backends/cuda/backend.hpp"
#endif

namespace kvquant {

// Over every format a backend takes the compiler a minute and a gigabyte: each page layout has a file of its own.
extern template std::unique_ptr<engine> make_engine<cpu::backend>(any_artifact const&, cache_options const&);
extern template std::unique_ptr<engine> make_engine<cpu::float_backend>(any_artifact const&, cache_options const&);
extern template std::unique_ptr<engine> make_engine<cpu::generic::backend>(any_artifact const&, cache_options const&);
#if defined(KVQUANT_CUDA)
extern template std::unique_ptr<engine> make_engine<cuda::backend>(any_artifact const&, cache_options const&);
#endif

namespace {

#if defined(KVQUANT_CUDA)
using backends = type_list<cpu::backend, cpu::float_backend, cpu::generic::backend, cuda::backend>;
#else
using backends = type_list<cpu::backend, cpu::float_backend, cpu::generic::backend>;
#endif

template <class... B>
constexpr auto names_of(type_list<B...>) {
  return std::array{B::name...};
}
constexpr auto names = names_of(backends{});

}  // namespace

std::span<std::string_view const> backend_names() { return names; }

std::string_view default_backend() {
  return cpu::available_isas().empty() ? cpu::generic::backend::name : cpu::backend::name;
}

support supports(std::string_view backend, artifact_info const& artifact) {
  support found;
  visit_backend<backends>(backend, [&]<class B>(std::type_identity<B>) { found = B::supports(artifact); });
  return found;
}

std::unique_ptr<engine> make_engine(std::string_view backend, any_artifact const& artifact,
                                    cache_options const& options) {
  return make_engine<backends>(backend, artifact, options);
}

std::unique_ptr<engine> make_engine(std::string_view backend, std::filesystem::path const& artifact,
                                    cache_options const& options) {
  visit_backend<backends>(backend, [](auto) {});  // a name that is none is refused before the file is read
  return make_engine<backends>(backend, load_any_artifact(artifact), options);
}

}  // namespace kvquant
