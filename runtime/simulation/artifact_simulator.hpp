#pragma once
/// \file
/// An artifact at work on whole windows.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvquant/calibrate/artifact.hpp"
#include "runtime/simulation/simulator.hpp"

namespace kvquant::runtime {

/// The first `sinks` tokens exact, the rest quantized, the current token included; every outlier is kept.
template <Spec S>
class artifact_simulator final : public simulator {
 public:
  artifact_simulator(artifact<S> const& it, std::string name, executor_ref executor,
                     std::optional<std::size_t> sinks = std::nullopt)
      : simulator(std::move(name)),
        executor_(executor),
        space_(it.info.keys),
        sinks_(sinks.value_or(static_cast<std::size_t>(it.info.sinks))) {
    for (int layer = 0; layer < it.info.shape.layers; ++layer) {
      keys_.push_back(it.keys(layer));
      values_.push_back(it.values(layer));
    }
  }

  void keys_pre_rope(int layer, view2d<float> k) override {
    if (space_ == key_space::pre_rope) round_keys(keys_.at(static_cast<std::size_t>(layer)), k);
  }
  void keys_post_rope(int layer, view2d<float> k) override {
    if (space_ == key_space::post_rope) round_keys(keys_.at(static_cast<std::size_t>(layer)), k);
  }
  void values(int layer, view2d<float> v) override { round_values(values_.at(static_cast<std::size_t>(layer)), v); }

 private:
  using key_format = typename S::key_format;
  using value_format = typename S::value_format;
  static constexpr std::uint64_t outlier_bits = 8 * sizeof(outlier), range_bits = 8 * sizeof(value_range),
                                 exact_bits = 16;

  void round_keys(key_side<key_format> const& side, view2d<float> k) {
    for_row_blocks(executor_, k.rows, [&](std::size_t first, std::size_t rows) {
      std::vector<typename key_format::code_type> codes(k.cols);
      round_rows(k.middle_rows(first, rows), first, key_format::bits, [&](std::span<float> token, auto& outliers) {
        side.quantize(token, codes, [&](outlier o) { outliers.push_back(o); });
        for (std::size_t channel = 0; channel < token.size(); ++channel)
          token[channel] = side.decode(channel, codes[channel]);
        return std::uint64_t{0};
      });
    });
  }

  void round_values(value_side<value_format> const& side, view2d<float> v) {
    for_row_blocks(executor_, v.rows, [&](std::size_t first, std::size_t rows) {
      std::vector<typename value_format::code_type> codes(v.cols);
      auto selector = side.make_selector();
      round_rows(v.middle_rows(first, rows), first, value_format::bits, [&](std::span<float> token, auto& outliers) {
        value_range const range = side.quantize(token, codes, selector, [&](outlier o) { outliers.push_back(o); });
        affine const map = affine_of(range);
        for (std::size_t channel = 0; channel < token.size(); ++channel)
          token[channel] = side.decode(channel, map, codes[channel]);
        return value_format::scaled && !is_by_channel<value_format> ? range_bits : 0;
      });
    });
  }

  /// `round(token, outliers)` replaces a token by its dense reconstruction and returns the bits it needs beside codes.
  template <class Round>
  void round_rows(view2d<float> x, std::size_t first_token, int bits, Round&& round) {
    std::vector<outlier> outliers;
    std::uint64_t total_bits = 0;
    for (std::size_t row = 0; row < x.rows; ++row) {
      std::span<float> const token = x.row(row);
      if (first_token + row < sinks_) {
        for (float& value : token) value = round_to_half(value);
        total_bits += exact_bits * x.cols;
        continue;
      }
      outliers.clear();
      total_bits += round(token, outliers) + static_cast<std::uint64_t>(bits) * x.cols;
      total_bits += outlier_bits * outliers.size();
      for (outlier const it : outliers) token[it.index] += to_float(it.residual);
    }
    count(x.rows * x.cols, total_bits);
  }

  executor_ref executor_;
  key_space space_;
  std::size_t sinks_;
  std::vector<key_side<key_format>> keys_;
  std::vector<value_side<value_format>> values_;
};

/// Reads an artifact and simulates it, with its number of sinks unless another is given. Throws `bad_format` naming
/// both models if it was made for another one.
std::unique_ptr<simulator> simulate_artifact(std::filesystem::path const& path, model_config const& config,
                                             std::string const& model_hash, executor_ref executor,
                                             std::optional<std::size_t> sinks = std::nullopt);

}  // namespace kvquant::runtime
