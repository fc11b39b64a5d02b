#pragma once
/// \file
/// The formats of least predicted loss within so many bytes.

#include <cstddef>
#include <optional>
#include <vector>

#include "tools/plan/cache_plan.hpp"
#include "tools/plan/loss_table.hpp"

namespace kvquant::plan {

struct solution {
  std::size_t bytes = 0;  ///< of the cache and its sequences
  double bits = 0;        ///< of an element
  double loss = 0;
  std::vector<cache_format> by_layer;  ///< [layers]
};

/// A format that can be made for the whole model, beside the least loss that other choices have in as many bytes or
/// fewer.
struct curve_point {
  cache_format format;
  std::size_t bytes = 0;
  double bits = 0, loss = 0;
  bool is_pareto = false;   ///< no other such format has less of both, or of one
  double sides_apart = 0;   ///< keys and values in formats of their own
  double layers_apart = 0;  ///< and layers too
};

struct solved {
  std::vector<curve_point> curve;  ///< by rising bytes
  /// The best within the budget: a format that can be made, one for keys and one for values, any for each layer and
  /// side.
  solution makeable, sides_apart, layers_apart;
};

/// `request`: all but the format. Bytes are those of `bytes_of`, tables being those of the format that has most, and a
/// layer's blocks its share of the pool. The best of each kind is exact (see `trade_off`); of equally good ones the
/// first by the order of the table. Throws `bad_value` saying what the least would take where the budget holds nothing.
solved solve(loss_table const& losses, cache_request const& request, std::size_t budget);

}  // namespace kvquant::plan
