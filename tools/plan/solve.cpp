#include "tools/plan/solve.hpp"

#include <algorithm>
#include <span>

#include "kvquant/core/error.hpp"
#include "tools/plan/trade_off.hpp"

namespace kvquant::plan {

namespace {

/// A format of keys and one of values that fit into a page together.
struct side_pair {
  side_losses const* key;
  side_losses const* value;
  std::size_t page_bytes;

  cache_format format() const { return {key->format, value->format}; }
};

class solver {
 public:
  solver(loss_table const& losses, cache_request const& request)
      : request_(request), makeable_(losses.makeable), block_counts_(blocks_by_layer(request)) {
    for (auto const* const sides : {&losses.keys, &losses.values})
      for (side_losses const& side : *sides) take_fixed_bytes(side.format);
    for (side_losses const& key : losses.keys)
      for (side_losses const& value : losses.values) add(key, value);
    require(!pairs_.empty(), errc::bad_value, "plan: no losses of keys and values that fit into a page together");
  }

  /// A choice for each pair, the same in all layers.
  std::vector<layer_choice> whole_models(bool makeable_alone) const {
    std::vector<layer_choice> all;
    for (std::size_t id = 0; id < pairs_.size(); ++id) {
      side_pair const& it = pairs_[id];
      if (makeable_alone && std::ranges::find(makeable_, it.format()) == makeable_.end()) continue;
      std::size_t bytes = fixed_bytes_;
      for (std::size_t layer = 0; layer < block_counts_.size(); ++layer) bytes += page_bytes(layer, it);
      all.push_back({bytes, it.key->total() + it.value->total(), id});
    }
    return all;
  }
  trade_off by_layer() const {
    std::vector<std::vector<layer_choice>> layers(block_counts_.size());
    for (std::size_t layer = 0; layer < layers.size(); ++layer)
      for (std::size_t id = 0; id < pairs_.size(); ++id)
        layers[layer].push_back(
            {page_bytes(layer, pairs_[id]), pairs_[id].key->by_layer[layer] + pairs_[id].value->by_layer[layer], id});
    return trade_off(layers);
  }

  std::size_t fixed_bytes() const { return fixed_bytes_; }
  cache_format format(std::size_t id) const { return pairs_[id].format(); }
  double bits(std::size_t bytes) const {
    auto const channels = static_cast<double>(request_.shape.layers) * request_.shape.kv_channels();
    return 8 * static_cast<double>(bytes) /
           (2 * channels * static_cast<double>(request_.tokens) * static_cast<double>(request_.sequences));
  }
  solution whole_model(layer_choice const& it) const {
    return {it.bytes, bits(it.bytes), it.loss, std::vector(block_counts_.size(), format(it.id))};
  }

 private:
  void add(side_losses const& key, side_losses const& value) {
    request_.format = {key.format, value.format};
    bool const exact_value = value.format.id == format_id_of<passthrough>;
    if (request_.format.is_exact() != exact_value) return;
    pairs_.push_back({&key, &value, page_bytes_of(request_)});
  }
  /// What a cache has beside its pages, where the tables of this format are the largest.
  void take_fixed_bytes(side_format const& format) {
    request_.format = {format, format};
    side_pair const both{nullptr, nullptr, page_bytes_of(request_)};
    std::size_t of_pages = 0;
    for (std::size_t layer = 0; layer < block_counts_.size(); ++layer) of_pages += page_bytes(layer, both);
    fixed_bytes_ = std::max(fixed_bytes_, bytes_of(request_).total() - of_pages);
  }
  std::size_t page_bytes(std::size_t layer, side_pair const& it) const {
    return block_counts_[layer] * static_cast<std::size_t>(request_.shape.kv_heads) * it.page_bytes;
  }

  cache_request request_;
  std::vector<cache_format> makeable_;
  std::vector<std::size_t> block_counts_;  // [layers]
  std::vector<side_pair> pairs_;
  std::size_t fixed_bytes_ = 0;
};

/// Of choices by rising bytes and with falling loss.
layer_choice const* best_within(std::span<layer_choice const> choices, std::size_t bytes) {
  layer_choice const* best = nullptr;
  for (layer_choice const& it : choices)
    if (it.bytes <= bytes) best = &it;
  return best;
}

}  // namespace

solved solve(loss_table const& losses, cache_request const& request, std::size_t budget) {
  solver const all(losses, request);
  auto formats = all.whole_models(true);
  std::ranges::stable_sort(formats, {}, &layer_choice::bytes);
  auto const makeable = undominated(formats), sides_apart = undominated(all.whole_models(false));
  trade_off const layers_apart = all.by_layer();
  auto const point_of = [&](std::size_t bytes) { return layers_apart.best_within(bytes - all.fixed_bytes()); };

  solved out;
  for (layer_choice const& it : formats) {
    bool const is_pareto = std::ranges::any_of(makeable, [&](layer_choice const& one) { return one.id == it.id; });
    out.curve.push_back({all.format(it.id), it.bytes, all.bits(it.bytes), it.loss, is_pareto,
                         best_within(sides_apart, it.bytes)->loss, layers_apart.loss(*point_of(it.bytes))});
  }
  require(budget >= sides_apart.front().bytes, errc::bad_value, "plan: a budget of ", budget,
          " bytes holds none of the formats, the least of which, ", to_string(all.format(sides_apart.front().id)),
          ", takes ", sides_apart.front().bytes, " bytes");
  if (auto const* const best = best_within(makeable, budget)) out.makeable = all.whole_model(*best);
  out.sides_apart = all.whole_model(*best_within(sides_apart, budget));
  std::size_t const point = *point_of(budget);
  std::size_t const bytes = all.fixed_bytes() + layers_apart.bytes(point);
  out.layers_apart = {bytes, all.bits(bytes), layers_apart.loss(point), {}};
  for (std::size_t const id : layers_apart.choices(point)) out.layers_apart.by_layer.push_back(all.format(id));
  return out;
}

}  // namespace kvquant::plan
