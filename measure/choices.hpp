#pragma once
/// \file
/// What is measured: the backend, the cache that others are compared with, and the formats beside it.

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "backends/cpu/backend.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"
#include "kvquant/core/type_list.hpp"
#include "kvquant/format/formats.hpp"
#include "kvquant/quantize/spec.hpp"
#include "measure/artifact.hpp"
#include "measure/job.hpp"

namespace kvquant::measure {

using backend = cpu::backend;

using baseline_spec = spec<passthrough, passthrough>;

/// What `KVQUANT_ISA` may be.
inline constexpr auto isa_names = [] {
  std::array<std::string_view, cpu::all_isas.size()> names{};
  std::transform(cpu::all_isas.begin(), cpu::all_isas.end(), names.begin(), cpu::name_of);
  return names;
}();

/// Those of them that this machine has, fastest first.
inline std::vector<std::string> available_isa_names() {
  std::vector<std::string> names;
  for (cpu::isa const it : cpu::available_isas()) names.emplace_back(cpu::name_of(it));
  return names;
}

/// The specs that can be measured. All are instantiated once more for it.
using measured_specs =
    type_list<baseline_spec, spec<nuq<2>, nuq<2>>, spec<nuq<3>, nuq<3>>, spec<nuq<4>, nuq<4>>,
              spec<normal_float<4>, normal_float<4>>, spec<uniform<4>, uniform<4>>, spec<adaptive, adaptive>>;

/// Calls `f(std::type_identity<S>{})` for the spec of a format that there is.
template <class F>
void visit_measured(format_choice const& format, F&& f) {
  visit_first(
      measured_specs{}, [&]<class S>(std::type_identity<S>) { return S::name() == format.spec; }, f);
}

/// `tokens`: what the ranges are taken from.
template <PackedSpec S>
artifact<S> make_measured_artifact(model_shape const& shape, [[maybe_unused]] format_choice const& format,
                                   [[maybe_unused]] random_tokens const& tokens) {
  if constexpr (std::is_same_v<S, baseline_spec>)
    return make_passthrough_artifact(shape);
  else
    return make_artifact<S>(shape, tokens, format);
}

}  // namespace kvquant::measure
