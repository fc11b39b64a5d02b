#pragma once
/// \file
/// One static range per channel, found by calibration: keys (KVQuant, sections 3.1 and 3.4), and both sides of formats
/// that are `by_channel`.

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvquant/core/error.hpp"
#include "kvquant/core/view.hpp"
#include "kvquant/format/format.hpp"
#include "kvquant/quantize/affine.hpp"
#include "kvquant/quantize/outlier.hpp"

namespace kvquant {

/// The tables of a side's channels: one for all, or several, and which of them each channel has.
template <Format F>
struct channel_tables {
  std::vector<typename F::table> tables;  ///< at least one
  std::vector<std::uint16_t> table_of{};  ///< [channels], or empty: the first for all
};

/// Quantizes channels to `x̂ = scale_c · level_c[code] + zero_c`; formats that are not `scaled` take them as they are.
template <Format F>
class channel_side {
 public:
  /// Its datatype.
  using format = F;
  /// Of one code.
  using code_type = typename F::code_type;

  /// `ranges`: [channels], which are taken to [−1, 1], and beyond which a value is an outlier if `keep_outliers`.
  /// `what`: keys or values, for messages.
  channel_side(std::span<value_range const> ranges, channel_tables<F> tables, bool keep_outliers,
               char const* what = "keys")
      : tables_(std::move(tables.tables)),
        table_of_(std::move(tables.table_of)),
        keep_outliers_(F::scaled && keep_outliers),
        what_(what) {
    require(!ranges.empty() && ranges.size() <= 0x10000, errc::bad_shape, what, ": ", ranges.size(),
            " channels, expected 1 to 65536");
    require(!tables_.empty() && (table_of_.empty() || table_of_.size() == ranges.size()), errc::bad_shape, what, ": ",
            tables_.size(), " tables for ", ranges.size(), " channels, ", table_of_.size(), " of which have one");
    for (std::size_t channel = 0; channel < table_of_.size(); ++channel)
      require(table_of_[channel] < tables_.size(), errc::bad_value, what, ": channel ", channel, " has table ",
              table_of_[channel], " of ", tables_.size());
    channels_.reserve(ranges.size());
    for (value_range const range : ranges) {
      std::size_t const channel = channels_.size();
      require(range.low() <= range.high(), errc::bad_value, what, ": channel ", channel, " has the range [",
              range.low(), ", ", range.high(), "], expected lower <= upper");
      channels_.push_back({F::scaled ? affine_of(range) : affine{}, range.low(), range.high()});
    }
  }
  /// The same with one table for all channels.
  channel_side(std::span<value_range const> ranges, typename F::table const& table, bool keep_outliers,
               char const* what = "keys")
      : channel_side(ranges, channel_tables<F>{{table}, {}}, keep_outliers, what) {}

  /// Of all KV heads.
  std::size_t channels() const { return channels_.size(); }
  /// Of formats with one table for all channels.
  typename F::table const& table() const { return tables_.front(); }
  /// Of one channel.
  typename F::table const& table(std::size_t channel) const {
    return table_of_.empty() ? tables_.front() : tables_[table_of_[channel]];
  }
  /// All of them.
  std::vector<typename F::table> const& tables() const { return tables_; }
  /// [channels], which table each has; empty: the first.
  std::vector<std::uint16_t> const& table_of() const { return table_of_; }
  /// Of all that is read while encoding.
  std::size_t bytes() const {
    return sizeof(*this) + channels_.size() * sizeof(channel_range) + tables_.size() * sizeof(typename F::table) +
           table_of_.size() * sizeof(std::uint16_t);
  }
  /// From where levels are to where values are.
  affine map(std::size_t channel) const { return channels_[channel].map; }

  ///@{
  /// One element, without its residual.
  code_type encode(std::size_t channel, float x) const { return F::encode(table(channel), map(channel).normalise(x)); }
  float decode(std::size_t channel, code_type code) const {
    return map(channel).restore(F::decode(table(channel), code));
  }
  ///@}
  /// Whether a value lies beyond its channel's range and is to be kept sparse.
  bool is_outlier(std::size_t channel, float x) const {
    return keep_outliers_ && (x < channels_[channel].low || x > channels_[channel].high);
  }

  /// One token: `codes` [channels]; `sink(outlier)` for each outlier, by rising channel. Throws `bad_shape`, and
  /// `bad_value` naming the channel that is no binary16 number; nothing is written then.
  template <class Sink>
  void quantize(std::span<float const> token, std::span<code_type> codes, Sink&& sink) const {
    require_storable(token, codes.size(), channels(), what_);
    for (std::size_t channel = 0; channel < channels(); ++channel) {
      float const x = token[channel];
      codes[channel] = encode(channel, x);
      if (is_outlier(channel, x))
        sink(outlier{static_cast<std::uint16_t>(channel), residual_of(x, decode(channel, codes[channel]))});
    }
  }

  /// What `token_side` has: here no token has a range of its own.
  struct selector_type {
    /// No range.
    value_range select(std::span<float const>) const { return {}; }
  };
  ///@{
  /// As `token_side` has it, for code that is written for both.
  selector_type make_selector() const { return {}; }
  affine map(std::size_t channel, affine /*of the token*/) const { return map(channel); }
  code_type encode(std::size_t channel, affine /*of the token*/, float x) const { return encode(channel, x); }
  float decode(std::size_t channel, affine /*of the token*/, code_type code) const { return decode(channel, code); }
  template <class Sink>
  value_range quantize(std::span<float const> token, std::span<code_type> codes, selector_type&, Sink&& sink) const {
    quantize(token, codes, std::forward<Sink>(sink));
    return {};
  }
  ///@}

 private:
  struct channel_range {
    affine map;
    float low, high;
  };
  std::vector<channel_range> channels_;
  std::vector<typename F::table> tables_;
  std::vector<std::uint16_t> table_of_;  // [channels], or empty: the first
  bool keep_outliers_;
  char const* what_;
};

}  // namespace kvquant
