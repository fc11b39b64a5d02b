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
#include "kvquant/quantize/round_trip.hpp"
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

  void round_keys(key_side<key_format> const& side, view2d<float> k) { round_rows(side, k, key_format::bits, 0); }
  void round_values(value_side<value_format> const& side, view2d<float> v) {
    round_rows(side, v, value_format::bits,
               value_format::scaled && !is_by_channel<value_format> ? range_bits : std::uint64_t{0});
  }

  /// `token_bits`: what a token needs beside codes of `bits` each and outliers.
  template <class Side>
  void round_rows(Side const& side, view2d<float> x, int bits, std::uint64_t token_bits) {
    for_row_blocks(executor_, x.rows, [&](std::size_t first, std::size_t rows) {
      token_rounder round(side);
      std::uint64_t total_bits = 0;
      for (std::size_t row = first; row < first + rows; ++row) {
        std::span<float> const token = x.row(row);
        if (row < sinks_) {
          for (float& value : token) value = round_to_half(value);
          total_bits += exact_bits * x.cols;
        } else {
          total_bits += outlier_bits * round(token) + static_cast<std::uint64_t>(bits) * x.cols + token_bits;
        }
      }
      count(rows * x.cols, total_bits);
    });
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
