#pragma once
/// \file
/// What a model with its cache takes of each device, how long a context fits, how fast it can be read.

#include <cstddef>

#include "kvquant/cache/bytes.hpp"
#include "tools/plan/cache_plan.hpp"
#include "tools/plan/model_facts.hpp"

namespace kvquant::plan {

/// Of a whole model.
struct weight_bytes {
  std::size_t all = 0;
  std::size_t looked_up = 0;  ///< of them in a table of embeddings of which a token reads a row
};
/// Parameters of so many bits each.
weight_bytes weights_of(model_facts const& model, double bits);

struct memory_request {
  model_facts model{};
  weight_bytes weights{};
  cache_format format{};
  std::size_t tokens = 0;  ///< of each sequence
  std::size_t sequences = 1;
  int sinks = 1, recent_pages = 0;
  int devices = 1;          ///< each holds as many of the KV heads, rounded up, and of the weights
  std::size_t chunk = 512;  ///< tokens of a prompt that go through the model together
  page_owner owner = page_owner::cpu;
};

/// Of one device, the one that holds most.
struct memory_plan {
  byte_report cache;
  std::size_t weights = 0, activations = 0;
  std::size_t read_by_a_step = 0;  ///< one token for every sequence
  double bits_per_element = 0;     ///< of the cache

  std::size_t total() const { return cache.total() + weights + activations; }
};

/// With the KV heads of one of so many devices, the one that has most.
model_shape shape_of_device(model_shape shape, int devices);
cache_request cache_of(memory_request const& request);

/// Throws what a cache would throw.
memory_plan plan_memory(memory_request const& request);

/// The most tokens of each sequence with which `plan_memory` stays within `bytes`; 0: not even one.
std::size_t longest_context(memory_request request, std::size_t bytes);

}  // namespace kvquant::plan
