#pragma once
/// \file
/// The bytes of a cache that is not there: what `kv_cache::bytes` would say.

#include <cstddef>
#include <vector>

#include "kvquant/cache/bytes.hpp"
#include "kvquant/cache/kv_cache.hpp"
#include "kvquant/quantize/spec.hpp"
#include "tools/plan/cache_format.hpp"

namespace kvquant::plan {

/// Whose pages: a backend may add to those of the definition.
enum class page_owner { cpu, cuda };

struct cache_request {
  model_shape shape{};  ///< of what one device holds
  cache_format format{};
  std::size_t tokens = 0;  ///< of each sequence
  std::size_t sequences = 1;
  int sinks = 1, recent_pages = 0;
  page_owner owner = page_owner::cpu;
};

/// With room for the pages of all sequences and no more.
cache_options options_for(cache_request const& request);

/// Whether the CUDA backend attends over the format's pages; if not, those of the definition are counted.
bool is_served_by_cuda(cache_request const& request);

/// All that a cache of `options_for` and its sequences allocate when each has its tokens, taken one by one: every
/// member of the report, `slack` too. Tables are those of the CPU backend; where keys and values differ, those of the
/// side that has more, for both. Throws what a cache would throw.
byte_report bytes_of(cache_request const& request);

/// Of one KV head.
std::size_t page_bytes_of(cache_request const& request);
/// [layers] blocks of the pool, those that are there for a prompt shared among the layers with a window.
std::vector<std::size_t> blocks_by_layer(cache_request const& request);

/// What a step of decoding reads of it: pages whole, exact tokens, page tables; of layers with a window what it sees.
std::size_t bytes_read_by_a_step(cache_request const& request);

}  // namespace kvquant::plan
