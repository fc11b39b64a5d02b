/// \file
/// Decode attention on the CPU. Caches are cold: layers take turns, and hold twice the last-level cache together.

#include <cstddef>
#include <map>

#include "bench/support/attention_cases.hpp"
#include "bench/support/run.hpp"

namespace {

using namespace kvquant;
using measure::job;

measure::attention_target const& target_of(job const& what) {
  static std::map<int, measure::attention_target> known;
  auto const [it, is_new] = known.try_emplace(what.threads);
  if (is_new) it->second = measure::cpu_target(what.threads);
  return it->second;
}

void add_all() {
  for (model_shape const& shape : measure::default_shapes())
    for (char const* const context : {"256", "1K", "4K", "8K", "16K", "32K", "128K"})
      for (std::size_t const batch : {1u, 16u})
        for (int const threads : {1, 2})
          bench::add_attention(
              {.shape = shape, .context = measure::parse_context(context), .batch = batch, .threads = threads},
              target_of);
}

}  // namespace

int main(int argc, char** argv) { return kvquant::bench::run(argc, argv, add_all); }
