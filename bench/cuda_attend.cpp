/// \file
/// Decode attention on a CUDA device. Caches are cold: layers take turns in one captured graph, and hold eight times
/// the second-level cache together.

#include <cstddef>

#include "bench/support/attention_cases.hpp"
#include "bench/support/run.hpp"

namespace {

using namespace kvquant;
using measure::job;

measure::attention_target const& target_of(job const&) {
  static measure::attention_target const device = measure::cuda_target();
  return device;
}

void add_all() {
  for (model_shape const& shape : measure::default_shapes())
    for (char const* const context : {"512", "4K", "8K", "32K", "64K"})
      for (std::size_t const batch : {1u, 16u})
        bench::add_attention({.shape = shape, .context = measure::parse_context(context), .batch = batch, .threads = 0},
                             target_of);
}

}  // namespace

int main(int argc, char** argv) { return kvquant::bench::run(argc, argv, add_all); }
