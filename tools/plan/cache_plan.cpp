#include "tools/plan/cache_plan.hpp"

#include <algorithm>
#include <cstdint>

#include "backends/cuda/page_offsets.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/half.hpp"
#include "tools/plan/table_bytes.hpp"

namespace kvquant::plan {

namespace {

/// What of a layer's tokens is where, of one sequence.
struct layer_tokens {
  std::size_t pages = 0;  ///< in use
  std::size_t seen = 0;   ///< of them by the latest token
  std::size_t sinks = 0, tail = 0;
};

/// As `kv_cache` leaves them: before a token is appended, pages that no query can see any more are given back.
layer_tokens tokens_of(cache_request const& request, int layer) {
  cache_options const options = options_for(request);
  auto const sinks = static_cast<std::size_t>(request.sinks), recent = static_cast<std::size_t>(request.recent_pages);
  auto const pages_at = [&](std::size_t tokens) { return sealed_tokens(tokens, sinks, recent) / page_tokens; };
  std::size_t const sealed = pages_at(request.tokens), window = request.shape.window_of(layer);
  layer_tokens it{sealed, sealed, std::min(request.tokens, sinks), 0};
  it.tail = request.tokens - it.sinks - sealed * page_tokens;
  if (window > 0 && request.tokens > window + sinks)
    it.seen -= std::min((request.tokens - window - sinks) / page_tokens, sealed);
  std::size_t const kept = window + static_cast<std::size_t>(options.rewind_tokens) + sinks;
  if (window == 0 || request.tokens <= kept) return it;
  std::size_t const before = pages_at(request.tokens - 1);
  if (before > 0) it.pages -= std::min((request.tokens - kept) / page_tokens, before - 1);
  return it;
}

}  // namespace

cache_options options_for(cache_request const& request) {
  cache_options options{.sinks = request.sinks, .recent_pages = request.recent_pages};
  options.max_tokens = request.sequences * sealed_tokens(request.tokens, static_cast<std::size_t>(request.sinks),
                                                         static_cast<std::size_t>(request.recent_pages));
  options.max_sequences = request.sequences;
  return options;
}

bool is_served_by_cuda(cache_request const& request) {
  model_shape const& shape = request.shape;
  cache_format const& format = request.format;
  auto const served = [](auto const& all, int one) { return std::ranges::find(all, one) != all.end(); };
  // Formats whose channels have widths have 0 bits here as there.
  return format.key.id.bits == format.value.id.bits && served(cuda::code_bits, format.key.id.bits) &&
         served(cuda::head_dims, shape.head_dim) && shape.local.layers.empty();
}

std::size_t page_bytes_of(cache_request const& request) {
  page_geometry const geometry = geometry_of(request.format, request.shape.head_dim);
  if (request.owner == page_owner::cpu || !is_served_by_cuda(request)) return geometry.page_bytes();
  return cuda::page_bytes_of(geometry, request.format.key.id.bits);
}

std::vector<std::size_t> blocks_by_layer(cache_request const& request) {
  cache_options const options = options_for(request);
  auto const layers = static_cast<std::size_t>(request.shape.layers), local = request.shape.local.layers.size();
  std::size_t const pages = options.max_tokens / page_tokens;  // it is whole pages
  std::size_t left = detail::blocks_for(options, request.shape) - pages * (layers - local), with_window = local;
  std::vector<std::size_t> blocks(layers, pages);
  for (int const layer : request.shape.local.layers) {
    std::size_t const share = left / with_window--;
    blocks[static_cast<std::size_t>(layer)] = share;
    left -= share;
  }
  return blocks;
}

byte_report bytes_of(cache_request const& request) {
  model_shape const& shape = request.shape;
  validate(shape);
  page_geometry const geometry = geometry_of(request.format, shape.head_dim);
  cache_options const options = options_for(request);
  std::size_t const kv_heads = static_cast<std::size_t>(shape.kv_heads), page_bytes = page_bytes_of(request);
  std::size_t const blocks = detail::blocks_for(options, shape);
  std::size_t const row_bytes = 2 * static_cast<std::size_t>(shape.kv_channels()) * sizeof(half);
  std::size_t const exact_rows =
      static_cast<std::size_t>(request.sinks) + static_cast<std::size_t>(request.recent_pages + 1) * page_tokens;
  double const exact_bytes = static_cast<double>(request.sequences) * shape.layers * static_cast<double>(exact_rows) *
                             static_cast<double>(row_bytes);
  require(exact_bytes < 0x1p62, errc::bad_value, "plan: sinks and tails of ", request.sequences, " sequences take ",
          exact_bytes, " bytes, expected fewer than 2^62");
  byte_report all;
  std::size_t in_use = 0;
  for (int layer = 0; layer < shape.layers; ++layer) {
    layer_tokens const tokens = tokens_of(request, layer);
    in_use += request.sequences * tokens.pages;
    all.sinks += request.sequences * tokens.sinks * row_bytes;
    all.tail += request.sequences * tokens.tail * row_bytes;
    all.slack += request.sequences * (exact_rows - tokens.sinks - tokens.tail) * row_bytes;
    all.page_table += request.sequences * std::min(request.tokens / page_tokens + 1, blocks) * sizeof(page_id);
  }
  all.codes = in_use * kv_heads * (geometry.k_code_bytes() + geometry.v_code_bytes());
  all.value_ranges = in_use * kv_heads * geometry.range_bytes();
  all.slots = in_use * kv_heads * geometry.slot_bytes();
  all.padding = in_use * kv_heads * (page_bytes - geometry.used_bytes());
  all.slack += (blocks - in_use) * kv_heads * page_bytes;
  all.page_table += blocks * (sizeof(page_id) + sizeof(std::uint32_t));
  all.tables = std::max(table_bytes(request.format.key, shape), table_bytes(request.format.value, shape));
  return all;
}

std::size_t bytes_read_by_a_step(cache_request const& request) {
  model_shape const& shape = request.shape;
  std::size_t const kv_heads = static_cast<std::size_t>(shape.kv_heads), page_bytes = page_bytes_of(request);
  std::size_t const row_bytes = 2 * static_cast<std::size_t>(shape.kv_channels()) * sizeof(half);
  std::size_t bytes = 0;
  for (int layer = 0; layer < shape.layers; ++layer) {
    layer_tokens const tokens = tokens_of(request, layer);
    std::size_t const window = shape.window_of(layer), exact = tokens.sinks + tokens.tail;
    bytes += tokens.seen * (kv_heads * page_bytes + sizeof(page_id));
    bytes += (window == 0 ? exact : std::min(window, exact)) * row_bytes;
  }
  return bytes * request.sequences;
}

}  // namespace kvquant::plan
