#include "tools/plan/adaptive_losses.hpp"

#include <algorithm>
#include <utility>

#include "kvquant/calibrate/fit.hpp"
#include "kvquant/calibrate/kmeans.hpp"

namespace kvquant::plan {

adaptive_losses::adaptive_losses(side_statistics const& side, model_shape shape, bool is_key)
    : shape_(std::move(shape)), is_key_(is_key) {
  for (std::size_t channel = 0; channel < side.channels.size(); ++channel)
    channels_.push_back(losses_of(side.channels[channel], side.sensitivity[channel]));
}

adaptive_losses::channel_losses adaptive_losses::losses_of(channel_statistics const& channel, double sensitivity) {
  channel_losses out;
  auto const bins = detail::bins_in_x(channel);
  double const mass = detail::total_of(bins).mass;
  for (std::size_t width = 0; width < most_channel_bits && !bins.empty(); ++width) {
    auto const fitted = exact_kmeans(bins, std::size_t{2} << width);
    out.by_width[width] = fitted.objective;
    detail::for_each_nearest(bins, {}, fitted.centroids, [&](moments const& bin, double level) {
      double const loss = bin.squared_error(level);
      out.bins[width].push_back({sensitivity * loss / bin.mass, loss, bin.mass / mass});
    });
  }
  return out;
}

double adaptive_losses::of(side_format const& format) const {
  auto const d = static_cast<std::size_t>(shape_.head_dim);
  page_geometry const geometry = geometry_of({format, format}, shape_.head_dim);
  width_plan const plan = detail::plan_of(shape_, is_key_, static_cast<int>(geometry.k_token_bits));
  double const slots = static_cast<double>(geometry.k_slots) / static_cast<double>(page_tokens);
  double loss = 0;
  for (std::size_t first = 0; first < channels_.size(); first += d) {
    auto const widths = widths_of(plan, first / d * plan.units_per_head);
    std::vector<bin_loss> bins;
    for (std::size_t channel = 0; channel < d; ++channel) {
      channel_losses const& it = channels_[first + channel];
      std::size_t const width = widths[channel] - 1u;
      loss += it.by_width[width];
      if (slots > 0) bins.insert(bins.end(), it.bins[width].begin(), it.bins[width].end());
    }
    loss -= kept_by_slots(bins, slots);
  }
  return loss;
}

/// [head_dim] of the head whose units begin there.
std::vector<std::uint8_t> adaptive_losses::widths_of(width_plan const& plan, std::size_t first_unit) const {
  auto const d = static_cast<std::size_t>(shape_.head_dim);
  auto const units = std::span(plan.units).subspan(first_unit, plan.units_per_head);
  std::vector<width_losses> losses(units.size());
  for (std::size_t unit = 0; unit < units.size(); ++unit)
    for (std::size_t const channel : units[unit])
      for (std::size_t i = 0; i < most_channel_bits; ++i) losses[unit][i] += channels_[channel].by_width[i];
  auto const chosen = allocate_widths(losses, plan.quantum, plan.token_bits / units.front().size());
  std::vector<std::uint8_t> widths(d);
  for (std::size_t unit = 0; unit < units.size(); ++unit)
    for (std::size_t const channel : units[unit]) widths[channel % d] = chosen[unit];
  return widths;
}

/// `elements`: slots for each token.
double adaptive_losses::kept_by_slots(std::span<bin_loss const> bins, double elements) const {
  std::vector<bin_loss> heap(bins.begin(), bins.end());
  auto const less = [](bin_loss const& a, bin_loss const& b) { return a.priority < b.priority; };
  std::make_heap(heap.begin(), heap.end(), less);
  double kept = 0;
  while (elements > 0 && !heap.empty()) {
    bin_loss const& most = heap.front();
    double const part = most.share > elements ? elements / most.share : 1;
    kept += part * most.loss;
    elements -= most.share;
    std::pop_heap(heap.begin(), heap.end(), less);
    heap.pop_back();
  }
  return kept;
}

}  // namespace kvquant::plan
