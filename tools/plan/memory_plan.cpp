#include "tools/plan/memory_plan.hpp"

#include <algorithm>
#include <cmath>

#include "kvquant/core/error.hpp"
#include "tools/plan/quantity.hpp"

namespace kvquant::plan {

namespace {

std::size_t share(std::size_t whole, int devices) {
  auto const parts = static_cast<std::size_t>(devices);
  return (whole + parts - 1) / parts;
}

/// Matrices of floats as this project's runtime has them: the residual stream and its norm whole, queries and what
/// attention makes of them, keys, values, gate and up by the device's share; scores of a token for each sequence.
std::size_t activation_bytes(memory_request const& request) {
  model_facts const& model = request.model;
  auto const count = [](int x) { return static_cast<std::size_t>(x); };
  std::size_t const q = count(model.shape.q_heads) * count(model.shape.head_dim);
  std::size_t const split = 2 * q + 2 * count(model.shape.kv_channels()) + 2 * count(model.feed_forward);
  std::size_t const row = 2 * count(model.hidden) + share(split, request.devices);
  std::size_t const rows = std::max(request.sequences, std::min(request.chunk, request.tokens));
  return sizeof(float) * (rows * row + request.sequences * share(count(model.vocabulary), request.devices));
}

}  // namespace

weight_bytes weights_of(model_facts const& model, double bits) {
  auto const bytes = [&](std::size_t parameters) {
    return static_cast<std::size_t>(std::ceil(static_cast<double>(parameters) * bits / 8));
  };
  return {bytes(model.parameters()), model.tied_embeddings ? 0 : bytes(model.embedding_parameters())};
}

model_shape shape_of_device(model_shape shape, int devices) {
  int const queries_of_head = shape.q_heads / shape.kv_heads;
  shape.kv_heads = (shape.kv_heads + devices - 1) / devices;
  shape.q_heads = shape.kv_heads * queries_of_head;
  return shape;
}

cache_request cache_of(memory_request const& request) {
  return {.shape = shape_of_device(request.model.shape, request.devices),
          .format = request.format,
          .tokens = request.tokens,
          .sequences = request.sequences,
          .sinks = request.sinks,
          .recent_pages = request.recent_pages,
          .owner = request.owner};
}

memory_plan plan_memory(memory_request const& request) {
  cache_request const cache = cache_of(request);
  memory_plan plan{.cache = bytes_of(cache),
                   .weights = share(request.weights.all, request.devices),
                   .activations = activation_bytes(request)};
  plan.read_by_a_step =
      share(request.weights.all - request.weights.looked_up, request.devices) + bytes_read_by_a_step(cache);
  auto const channels =
      static_cast<std::size_t>(cache.shape.layers) * static_cast<std::size_t>(cache.shape.kv_channels());
  plan.bits_per_element = plan.cache.bits_per_element(2 * channels * request.tokens * request.sequences);
  return plan;
}

/// More tokens never take less, but for a few pages where windows of many sequences begin to fill; so halves are
/// searched.
std::size_t longest_context(memory_request request, std::size_t bytes) {
  auto const fits = [&](std::size_t tokens) {
    request.tokens = tokens;
    try {
      return plan_memory(request).total() <= bytes;
    } catch (error const& failure) {
      if (failure.code != errc::bad_value) throw;
      return false;  // more pages than there are numbers for
    }
  };
  std::size_t fitting = 0, failing = most_tokens + 1;
  while (failing - fitting > 1) {
    std::size_t const middle = fitting + (failing - fitting) / 2;
    (fits(middle) ? fitting : failing) = middle;
  }
  return fitting;
}

}  // namespace kvquant::plan
