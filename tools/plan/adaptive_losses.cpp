#include "tools/plan/adaptive_losses.hpp"

#include <algorithm>
#include <utility>

#include "kvquant/calibrate/channel_fit.hpp"
#include "kvquant/calibrate/kmeans.hpp"

namespace kvquant::plan {

adaptive_losses::adaptive_losses(side_statistics const& side, model_shape shape, bool is_key)
    : shape_(std::move(shape)), is_key_(is_key) {
  for (std::size_t channel = 0; channel < side.channels.size(); ++channel)
    add(side.channels[channel], side.sensitivity[channel]);
}

void adaptive_losses::add(channel_statistics const& channel, double sensitivity) {
  width_losses& losses = by_width_.emplace_back();
  bins_by_width& out = bins_.emplace_back();
  auto const bins = detail::bins_in_x(channel);
  double const mass = detail::total_of(bins).mass;
  for (std::size_t width = 0; width < most_channel_bits && !bins.empty(); ++width) {
    auto const fitted = exact_kmeans(bins, std::size_t{2} << width);
    losses[width] = fitted.objective;
    detail::for_each_nearest(bins, {}, fitted.centroids, [&](moments const& bin, double level) {
      double const loss = bin.squared_error(level);
      out[width].push_back({sensitivity * loss / bin.mass, loss, bin.mass / mass});
    });
  }
}

double adaptive_losses::of(side_format const& format) const {
  auto const d = static_cast<std::size_t>(shape_.head_dim);
  page_geometry const geometry = geometry_of({format, format}, shape_.head_dim);
  auto const chosen =
      detail::choose_widths(by_width_, plan_of(shape_, is_key_), static_cast<int>(geometry.k_token_bits));
  double const slots = static_cast<double>(geometry.k_slots) / static_cast<double>(page_tokens);
  double loss = chosen.loss;
  for (std::size_t first = 0; slots > 0 && first < bins_.size(); first += d) {
    std::vector<bin_loss> bins;
    for (std::size_t channel = first; channel < first + d; ++channel) {
      auto const& of_width = bins_[channel][chosen.widths[channel] - 1u];
      bins.insert(bins.end(), of_width.begin(), of_width.end());
    }
    loss -= kept_by_slots(bins, slots);
  }
  return loss;
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
