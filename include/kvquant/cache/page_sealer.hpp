#pragma once
/// \file
/// Turns 64 tokens of one layer into the pages of its KV heads: the only place where a cache quantizes.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <vector>

#include "kvquant/cache/page.hpp"
#include "kvquant/calibrate/artifact.hpp"
#include "kvquant/core/half.hpp"
#include "kvquant/core/view.hpp"

namespace kvquant {

/// Chooses the elements whose residual is kept: those with the largest sensitivity · residual² (what leaving it out
/// costs, see `calibrate/`), then the largest |residual|, then the lowest index. All of a page's elements compete; the
/// ones beyond the thresholds have the largest residuals by construction. Holds scratch: one object per thread.
class slot_selector {
 public:
  /// Forgets what was offered; `elements` is how many will be.
  void start(std::size_t elements) {
    candidates_.clear();
    candidates_.reserve(elements);
    order_.reserve(elements);
  }
  /// Indices rise.
  void offer(std::size_t index, half residual, float sensitivity) {
    float const r = to_float(residual);
    candidates_.push_back({sensitivity * r * r, std::fabs(r), {static_cast<std::uint16_t>(index), residual}});
  }
  /// Fills `slots`, not more than were offered, by rising index.
  void finish(std::span<outlier> slots) {
    KVQ_ASSERT(slots.size() <= candidates_.size());
    order_ = candidates_;
    auto const end = order_.begin() + static_cast<std::ptrdiff_t>(slots.size());
    if (end != order_.end()) std::nth_element(order_.begin(), end, order_.end(), weighs_more);
    auto slot = slots.begin();
    for (candidate const& it : candidates_)  // *end is the first that is not chosen
      if (end == order_.end() || weighs_more(it, *end)) *slot++ = it.element;
  }

 private:
  struct candidate {
    float weight, magnitude;
    outlier element;
  };
  static bool weighs_more(candidate const& a, candidate const& b) {
    if (a.weight != b.weight) return a.weight > b.weight;
    if (a.magnitude != b.magnitude) return a.magnitude > b.magnitude;
    return a.element.index < b.element.index;
  }
  std::vector<candidate> candidates_, order_;
};

/// Of formats that are `by_channel`: how many of the values that were sealed lay beyond what calibration had seen of
/// their channels. They read as the outermost level, unless a slot has what is missing.
struct clamp_counts {
  std::uint64_t keys = 0, values = 0;                  ///< that were sealed
  std::uint64_t clamped_keys = 0, clamped_values = 0;  ///< of these, beyond what calibration had seen

  ///@{
  /// Share of one side, 0 where nothing was sealed.
  double key_rate() const { return rate(clamped_keys, keys); }
  double value_rate() const { return rate(clamped_values, values); }
  ///@}

 private:
  static double rate(std::uint64_t part, std::uint64_t all) {
    return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
  }
};

/// The quantizers of one layer. Const calls may overlap.
template <PackedSpec S>
class page_sealer {
 public:
  /// Throws `bad_shape` or `bad_value` for sensitivities and widths that do not fit the model or are no numbers.
  page_sealer(artifact<S> const& it, int layer, page_geometry const& geometry)
      : geometry_(geometry),
        keys_(it.keys(layer)),
        values_(it.values(layer)),
        k_sensitivity_(it.layers[static_cast<std::size_t>(layer)].key_sensitivity),
        v_sensitivity_(it.layers[static_cast<std::size_t>(layer)].value_sensitivity),
        k_widths_(it.layers[static_cast<std::size_t>(layer)].key_channels.widths),
        v_widths_(it.layers[static_cast<std::size_t>(layer)].value_channels.widths),
        k_tables_(it.layers[static_cast<std::size_t>(layer)].key_channels.table_of),
        v_tables_(it.layers[static_cast<std::size_t>(layer)].value_channels.table_of),
        k_seen_(it.layers[static_cast<std::size_t>(layer)].key_channels.seen),
        v_seen_(it.layers[static_cast<std::size_t>(layer)].value_channels.seen) {
    std::size_t const channels = keys_.channels();
    require(k_sensitivity_.size() == channels && v_sensitivity_.size() == channels, errc::bad_shape, "artifact: layer ",
            layer, " has sensitivities of ", k_sensitivity_.size(), " key and ", v_sensitivity_.size(),
            " value channels, expected ", channels);
    for (auto const* sensitivities : {&k_sensitivity_, &v_sensitivity_})
      for (float const x : *sensitivities)
        require(std::isfinite(x) && x >= 0, errc::bad_value, "artifact: layer ", layer, " has a sensitivity of ", x,
                ", expected a finite number, 0 or more");
    require_widths<typename S::key_format>(k_widths_, geometry_.k_token_bits, "keys");
    require_widths<typename S::value_format>(v_widths_, geometry_.v_token_bits, "values");
  }

  ///@{
  /// The quantizer of a side.
  key_side<typename S::key_format> const& keys() const { return keys_; }
  value_side<typename S::value_format> const& values() const { return values_; }
  ///@}
  /// The geometry of a head's pages, with the widths and tables of its channels, which live as long as the sealer.
  page_geometry geometry(std::size_t head) const {
    page_geometry it = geometry_;
    std::size_t const first = head * it.head_dim;
    if (!k_widths_.empty()) {
      it.k_widths = k_widths_.data() + first;
      it.k_tables = k_tables_.data() + first;
    }
    if (!v_widths_.empty()) {
      it.v_widths = v_widths_.data() + first;
      it.v_tables = v_tables_.data() + first;
    }
    return it;
  }
  /// What calibration has seen of each channel, [kv_channels]; empty where it has not said.
  std::span<value_range const> key_seen() const { return k_seen_; }
  /// The same of values.
  std::span<value_range const> value_seen() const { return v_seen_; }
  ///@{
  /// Σ F of each channel in the calibration, [kv_channels].
  std::span<float const> key_sensitivity() const { return k_sensitivity_; }
  std::span<float const> value_sensitivity() const { return v_sensitivity_; }
  ///@}
  /// Of all that is read while sealing.
  std::size_t table_bytes() const {
    return keys_.bytes() + values_.bytes() + (k_sensitivity_.size() + v_sensitivity_.size()) * sizeof(float) +
           k_widths_.size() + v_widths_.size() + (k_tables_.size() + v_tables_.size()) * sizeof(std::uint16_t) +
           (k_seen_.size() + v_seen_.size()) * sizeof(value_range);
  }

  /// Scratch of one thread.
  struct worker {
    typename value_side<typename S::value_format>::selector_type ranks;  ///< of a token's values
    std::vector<float> token;                                            ///< [kv_channels]
    slot_selector slots;                                                 ///< of a page
    canonical_page<S> page;                                              ///< what is sealed
    clamp_counts clamps{};                                               ///< of all that it has sealed
  };
  /// With room for one page.
  worker make_worker() const {
    return {values_.make_selector(), std::vector<float>(keys_.channels()), {}, canonical_page<S>(geometry_), {}};
  }

  /// The range of one token's values, [kv_channels], over all KV heads; zeros where the format has none.
  value_range range_of(std::span<half const> token, worker& mine) const {
    if constexpr (!S::value_format::scaled || is_by_channel<typename S::value_format>) return {};
    std::transform(token.begin(), token.end(), mine.token.begin(), [](half x) { return to_float(x); });
    return mine.ranks.select(mine.token);
  }

  /// Seals one head. `k`, `v`: the last rows of the page, [page_tokens − reused, kv_channels], with the values'
  /// `ranges` of as many tokens. For the first `reused` tokens, `mine.page` holds what a page sealed before says of
  /// them: codes and ranges stay, residuals compete again. The result is left in `mine.page`. Sealing again with the
  /// same tokens gives the same page: what had lost its residual would have lost it again.
  void seal(std::size_t head, view2d<half const> k, view2d<half const> v, std::span<value_range const> ranges,
            std::size_t reused, worker& mine) const {
    std::size_t const d = geometry_.head_dim, first = head * d;
    canonical_page<S>& page = mine.page;
    std::copy(ranges.begin(), ranges.end(), page.v_ranges.begin() + static_cast<std::ptrdiff_t>(reused));
    if constexpr (!S::value_format::scaled) {
      copy_codes(k.middle_cols(first, d), reused, page.k_codes);
      copy_codes(v.middle_cols(first, d), reused, page.v_codes);
    } else {
      seal_side(std::span(k_sensitivity_).subspan(first, d), reused, page.k_slots, mine.slots,
                [&](std::size_t token, std::size_t channel) {
                  float const x = to_float(k(token - reused, first + channel));
                  auto const code = keys_.encode(first + channel, x);
                  page.k_codes[token * d + channel] = code;
                  return residual_of(x, keys_.decode(first + channel, code));
                });
      seal_side(std::span(v_sensitivity_).subspan(first, d), reused, page.v_slots, mine.slots,
                [&](std::size_t token, std::size_t channel) {
                  float const x = to_float(v(token - reused, first + channel));
                  affine const map = affine_of(page.v_ranges[token]);
                  auto const code = values_.encode(first + channel, map, x);
                  page.v_codes[token * d + channel] = code;
                  return residual_of(x, values_.decode(first + channel, map, code));
                });
      count_clamped(k_seen_, k.middle_cols(first, d), first, mine.clamps.keys, mine.clamps.clamped_keys);
      count_clamped(v_seen_, v.middle_cols(first, d), first, mine.clamps.values, mine.clamps.clamped_values);
    }
  }

 private:
  /// The bits of every head's tokens are those of the geometry.
  template <Format F>
  void require_widths(std::span<std::uint8_t const> widths, std::size_t token_bits, char const* side) const {
    if constexpr (is_by_channel<F>) {
      for (std::size_t first = 0; first < widths.size(); first += geometry_.head_dim) {
        auto const of_head = widths.subspan(first, geometry_.head_dim);
        auto const bits = std::accumulate(of_head.begin(), of_head.end(), std::size_t{0});
        require(bits == token_bits, errc::bad_value, "artifact: ", side, " of head ", first / geometry_.head_dim,
                " have ", bits, " bits a token, expected ", token_bits);
      }
    }
  }

  /// `x`: the channels from `first` on. Nothing is counted where calibration has not said what it saw.
  static void count_clamped(std::span<value_range const> seen, view2d<half const> x, std::size_t first,
                            std::uint64_t& all, std::uint64_t& clamped) {
    if (seen.empty()) return;
    all += x.rows * x.cols;
    for (std::size_t channel = 0; channel < x.cols; ++channel) {
      float const low = seen[first + channel].low(), high = seen[first + channel].high();
      for (std::size_t row = 0; row < x.rows; ++row) {
        float const value = to_float(x(row, channel));
        clamped += value < low || value > high ? 1u : 0u;
      }
    }
  }

  /// Of numbers as they are the codes are their bits.
  static void copy_codes(view2d<half const> x, std::size_t reused, std::span<std::uint16_t> codes) {
    for (std::size_t token = reused; token < page_tokens; ++token)
      std::memcpy(codes.data() + token * x.cols, x.row(token - reused).data(), x.cols * sizeof(half));
  }

  /// `encode(token, channel)` stores a code and returns its residual. `slots`: those of the re-opened page, then the
  /// new ones.
  template <class Encode>
  void seal_side(std::span<float const> sensitivity, std::size_t reused, std::span<outlier> slots,
                 slot_selector& selector, Encode&& encode) const {
    std::size_t const d = geometry_.head_dim;
    bool const sparse = !slots.empty();
    if (sparse) selector.start(geometry_.elements());
    auto kept = slots.begin();
    for (std::size_t index = 0; sparse && index < reused * d; ++index) {
      while (kept != slots.end() && kept->index < index) ++kept;
      bool const has_slot = kept != slots.end() && kept->index == index;
      selector.offer(index, has_slot ? kept->residual : half{}, sensitivity[index % d]);
    }
    for (std::size_t token = reused; token < page_tokens; ++token)
      for (std::size_t channel = 0; channel < d; ++channel) {
        half const residual = encode(token, channel);
        if (sparse) selector.offer(token * d + channel, residual, sensitivity[channel]);
      }
    if (sparse) selector.finish(slots);
  }

  page_geometry geometry_;
  key_side<typename S::key_format> keys_;
  value_side<typename S::value_format> values_;
  std::vector<float> k_sensitivity_, v_sensitivity_;  // [kv_channels]
  std::vector<std::uint8_t> k_widths_, v_widths_;     // [kv_channels], or empty
  std::vector<std::uint16_t> k_tables_, v_tables_;    // [kv_channels], or empty
  std::vector<value_range> k_seen_, v_seen_;          // [kv_channels], or empty
};

}  // namespace kvquant
