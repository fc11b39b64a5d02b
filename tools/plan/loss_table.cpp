#include "tools/plan/loss_table.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <string>
#include <utility>

#include "kvquant/calibrate/artifact_io.hpp"
#include "kvquant/calibrate/fit.hpp"
#include "kvquant/core/error.hpp"
#include "tools/plan/adaptive_losses.hpp"

namespace kvquant::plan {

namespace {

constexpr std::array slot_fractions = {0.0, 0.005};

/// ½ a window.
double per_window(double sum, provenance const& origin) { return sum / 2 / std::max(origin.samples, 1); }

/// What the calibration makes: a format's key and value.
void add(loss_table& to, side_losses keys, side_losses values) {
  to.makeable.push_back({keys.format, values.format});
  to.keys.push_back(std::move(keys));
  to.values.push_back(std::move(values));
}

template <Spec S>
void add_fitted(loss_table& to, saved_statistics const& from) {
  artifact<S> const it = fit<S>(from.statistics, {.shape = from.shape, .keys = from.keys, .origin = from.origin});
  calibration_options const& options = from.statistics.options();
  side_losses keys{{format_id_of<typename S::key_format>, 0, options.outlier_fraction_k}, {}};
  side_losses values{{format_id_of<typename S::value_format>, 0, options.outlier_fraction_v}, {}};
  for (layer_artifact const& layer : it.layers) {
    keys.by_layer.push_back(per_window(layer.key.objective, from.origin));
    values.by_layer.push_back(per_window(layer.value.objective, from.origin));
  }
  add(to, std::move(keys), std::move(values));
}

/// The formats `by_channel` that are tried: from 1.5 to 4 bits by what calibration can make, groups of eight channels
/// of which one has a bit more, or by 1/8 where that is coarser.
std::vector<side_format> adaptive_formats(int head_dim) {
  constexpr int group = 8;
  int const step = group * ((head_dim + 63) / 64);
  std::vector<side_format> all;
  for (int token_bits = head_dim * 3 / 2; token_bits <= head_dim * 4; token_bits += step)
    for (double const fraction : slot_fractions)
      all.push_back({format_id_of<adaptive>, static_cast<double>(token_bits) / head_dim, fraction});
  return all;
}

void add_adaptive(loss_table& to, saved_statistics const& from, executor_ref executor) {
  auto const formats = adaptive_formats(from.shape.head_dim);
  auto const& layers = from.statistics.layers();
  std::vector<side_losses> keys, values;
  for (side_format const& it : formats) {
    keys.push_back({it, std::vector<double>(layers.size())});
    values.push_back({it, std::vector<double>(layers.size())});
  }
  executor.parallel_for(2 * layers.size(), [&](std::size_t task, int) {
    std::size_t const layer = task / 2;
    bool const is_key = task % 2 == 0;
    adaptive_losses const losses(is_key ? layers[layer].key : layers[layer].value, from.shape, is_key);
    for (std::size_t i = 0; i < formats.size(); ++i)
      (is_key ? keys : values)[i].by_layer[layer] = per_window(losses.of(formats[i]), from.origin);
  });
  for (std::size_t i = 0; i < formats.size(); ++i) add(to, std::move(keys[i]), std::move(values[i]));
}

void add_exact(loss_table& to) {
  side_losses const none{{format_id_of<passthrough>}, std::vector<double>(static_cast<std::size_t>(to.shape.layers))};
  add(to, none, none);
}

/// Such that its geometry is the artifact's.
side_format format_of(format_id id, int token_bits, double outlier_fraction, int head_dim) {
  if (id.bits > 0) return {id, 0, outlier_fraction};
  return {id, static_cast<double>(token_bits) / head_dim + 8 * sizeof(outlier) * outlier_fraction, outlier_fraction};
}

void require_before_rope(key_space keys, std::string const& what) {
  require(keys == key_space::pre_rope, errc::bad_value, what, ": of keys after RoPE, which no cache holds");
}

bool has_fisher(calibrator const& statistics) {
  return std::ranges::all_of(statistics.layers(), [](layer_statistics const& it) {
    return it.key.of(fit_weights::fisher).total().mass > 0 || it.value.of(fit_weights::fisher).total().mass > 0;
  });
}

}  // namespace

double side_losses::total() const { return std::accumulate(by_layer.begin(), by_layer.end(), 0.0); }

loss_table losses_of(saved_statistics const& from, executor_ref executor) {
  require(has_fisher(from.statistics), errc::bad_value,
          "plan: the statistics hold no gradients, expected those of a calibration by Fisher weights");
  require_before_rope(from.keys, "plan: the statistics");
  loss_table out{from.shape, from.origin, {}, {}, {}};
  add_fitted<spec<nuq<2>, nuq<2>>>(out, from);
  add_fitted<spec<nuq<3>, nuq<3>>>(out, from);
  add_fitted<spec<nuq<4>, nuq<4>>>(out, from);
  if (from.statistics.options().channel_bins > 0) add_adaptive(out, from, executor);
  add_exact(out);
  return out;
}

loss_table losses_of(std::filesystem::path const& path) {
  loss_table out;
  visit_artifact(path, [&]<Spec S>(artifact<S> const& it) {
    artifact_info const& info = it.info;
    require(info.weights == fit_weights::fisher, errc::bad_value, path.string(), ": fitted by ",
            to_string(info.weights), " weights, expected fisher");
    require_before_rope(info.keys, path.string());
    out = {info.shape, info.origin, {}, {}, {}};
    side_losses keys{format_of(format_id_of<typename S::key_format>, info.key_token_bits, info.outlier_fraction_k,
                               info.shape.head_dim),
                     {}};
    side_losses values{format_of(format_id_of<typename S::value_format>, info.value_token_bits, info.outlier_fraction_v,
                                 info.shape.head_dim),
                       {}};
    for (layer_artifact const& layer : it.layers) {
      keys.by_layer.push_back(per_window(layer.key.objective, info.origin));
      values.by_layer.push_back(per_window(layer.value.objective, info.origin));
    }
    add(out, std::move(keys), std::move(values));
  });
  add_exact(out);
  return out;
}

void merge(loss_table& to, loss_table more) {
  auto const key_of = [](provenance const& it) {
    return text("model ", it.model_hash, ", text ", it.text_hash, ", ", it.samples, " windows x ", it.context,
                " tokens, seed ", it.seed);
  };
  require(key_of(to.origin) == key_of(more.origin), errc::bad_format, "plan: losses of another calibration (",
          key_of(more.origin), "), expected that of the first (", key_of(to.origin), ")");
  auto const add_sides = [](std::vector<side_losses>& all, std::vector<side_losses>& others) {
    for (side_losses& it : others) {
      auto const same = std::ranges::find(all, it.format, &side_losses::format);
      if (same != all.end())
        *same = std::move(it);
      else
        all.push_back(std::move(it));
    }
  };
  add_sides(to.keys, more.keys);
  add_sides(to.values, more.values);
  for (cache_format const& it : more.makeable)
    if (std::ranges::find(to.makeable, it) == to.makeable.end()) to.makeable.push_back(it);
}

}  // namespace kvquant::plan
