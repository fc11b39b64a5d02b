#pragma once
/// \file
/// What `eval` puts into a row: a model's hidden states with one kind of cache; and what caches are called.

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kvquant/cache/page_sealer.hpp"
#include "runtime/cache_engine.hpp"
#include "runtime/model.hpp"
#include "runtime/simulation/simulator.hpp"

namespace kvquant::tool {

class evaluated_cache {
 public:
  virtual ~evaluated_cache() = default;
  virtual std::string const& name() const = 0;
  /// The hidden states of one window, [T, hidden].
  virtual runtime::matrix forward(runtime::model const& model, std::span<runtime::token_id const> ids) = 0;
  /// Bits allocated per key or value for a sequence of `tokens`, after a window at least was seen.
  virtual double bits_at(std::size_t tokens) const = 0;
  /// Of what it has sealed.
  virtual clamp_counts clamps() const { return {}; }
};

/// Keys and values are rounded where they arise.
std::unique_ptr<evaluated_cache> evaluate_simulated(std::unique_ptr<runtime::simulator> cache);

/// Keys and values go through packed pages, one sequence a window. `options`: what the cache was made with, the sinks
/// being the artifact's.
std::unique_ptr<evaluated_cache> evaluate_packed(std::unique_ptr<engine> cache, cache_options const& options,
                                                 std::string name);

/// What a cache with recent pages is called.
std::string label_with(std::string label, int recent_pages);

/// A baseline with the exact window of ours.
std::unique_ptr<runtime::simulator> deploy_baseline(std::unique_ptr<runtime::simulator> baseline, int recent_pages);

}  // namespace kvquant::tool
