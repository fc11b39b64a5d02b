#include "tools/plan/table_bytes.hpp"

#include <vector>

#include "backends/cpu/sealer.hpp"
#include "kvquant/cache/layout_sealer.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "measure/artifact.hpp"

namespace kvquant::plan {

namespace {

/// Widths that come to `token_bits` for a head, a table for eight channels.
channel_codes even_channels(model_shape const& shape, std::size_t token_bits, std::vector<value_range> const& ranges) {
  constexpr std::size_t group = 8;
  auto const d = static_cast<std::size_t>(shape.head_dim);
  channel_codes out{{}, ranges, ranges, {}, {}};
  for (std::size_t channel = 0; channel < ranges.size(); ++channel) {
    bool const is_wider = channel % d < token_bits % d;
    out.widths.push_back(static_cast<std::uint8_t>(token_bits / d + (is_wider ? 1 : 0)));
    out.table_of.push_back(static_cast<std::uint16_t>(channel / group));
    if (channel % group == 0) out.levels.emplace_back(std::size_t{1} << out.widths.back());
  }
  return out;
}

/// One layer whose numbers do not matter.
template <Spec S>
artifact<S> blank_artifact(model_shape shape, page_geometry const& geometry) {
  shape.layers = 1;
  auto const channels = static_cast<std::size_t>(shape.kv_channels());
  std::vector<value_range> const ranges(channels, make_range(-1, 1));
  layer_artifact layer{.key_ranges = ranges,
                       .key = measure::even_codebook<typename S::key_format>(),
                       .value = measure::even_codebook<typename S::value_format>(),
                       .key_sensitivity = std::vector<float>(channels),
                       .value_sensitivity = std::vector<float>(channels)};
  if constexpr (is_by_channel<typename S::key_format>) {
    layer.key_channels = even_channels(shape, geometry.k_token_bits, ranges);
    layer.value_channels = even_channels(shape, geometry.v_token_bits, ranges);
  }
  return {{.spec = S::name(), .shape = shape, .origin = {}, .hash = {}}, {layer}};
}

}  // namespace

std::size_t table_bytes(side_format const& format, model_shape const& shape) {
  page_geometry const geometry = geometry_of({format, format}, shape.head_dim);
  std::size_t of_layer = 0;
  visit_spec(to_string(format.id), [&]<class S>(std::type_identity<S>) {
    of_layer = sealer_for<cpu::page_layout<S>>(blank_artifact<S>(shape, geometry), 0, geometry).table_bytes();
  });
  return of_layer * static_cast<std::size_t>(shape.layers);
}

}  // namespace kvquant::plan
