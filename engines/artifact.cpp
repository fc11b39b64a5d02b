#include "engines/artifact.hpp"

#include <optional>
#include <utility>

#include "kvquant/cache/page.hpp"
#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/quantize/round_trip.hpp"

namespace kvquant {

namespace {

void require_layer(artifact_info const& info, int layer) {
  require(layer >= 0 && layer < info.shape.layers, errc::bad_shape, "artifact: layer ", layer, ", expected 0 to ",
          info.shape.layers - 1);
}

template <class Side>
void round_rows(Side const& side, view2d<float> x) {
  token_rounder round(side);
  for (std::size_t row = 0; row < x.rows; ++row) round(x.row(row));
}

}  // namespace

any_artifact fit(std::string const& spec, calibrator const& statistics, fit_options const& options) {
  std::optional<any_artifact> fitted;
  visit_spec(spec, [&]<class S>(std::type_identity<S>) { fitted = fit<S>(statistics, options); });
  return std::move(fitted).value();
}

any_artifact checked(any_artifact const& it) {
  std::optional<any_artifact> read;
  visit_artifact(it, [&]<class S>(artifact<S> const& typed) {
    read = read_artifact<S>(safetensors_file(to_bytes(typed), "artifact"));
  });
  return std::move(read).value();
}

void save(any_artifact& it, std::filesystem::path const& path) {
  visit_artifact(it, [&](auto typed) {
    save(typed, path);
    it.info.hash = typed.info.hash;
  });
}

void round_keys(any_artifact const& it, int layer, view2d<float> k) {
  require_layer(it.info, layer);
  visit_artifact(it, [&](auto const& typed) { round_rows(typed.keys(layer), k); });
}

void round_values(any_artifact const& it, int layer, view2d<float> v) {
  require_layer(it.info, layer);
  visit_artifact(it, [&](auto const& typed) { round_rows(typed.values(layer), v); });
}

double bits_per_element(artifact_info const& info) {
  double bits = 0;
  visit_spec(info.spec, [&]<class S>(std::type_identity<S>) {
    if constexpr (PackedSpec<S>) {
      page_geometry const geometry = geometry_for<S>(info);
      bits = 8 * static_cast<double>(geometry.page_bytes()) / static_cast<double>(2 * geometry.elements());
    }
  });
  return bits;
}

}  // namespace kvquant
