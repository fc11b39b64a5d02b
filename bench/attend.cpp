/// \file
/// Decode attention over packed pages, beside the same over the library's own binary16 pages. A case's formats are
/// timed in turn, and its times are their medians; `ratio_to_f16` is taken round by round. Caches are cold: layers take
/// turns, and hold twice the last-level cache together.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "bench/support/bandwidth.hpp"
#include "bench/support/run.hpp"
#include "measure/attention.hpp"

namespace {

using namespace kvquant;
using measure::attention_results, measure::job;

/// Of all formats of a job, when the first of them is asked for.
attention_results const& results_of(job const& what) {
  static std::map<std::string, attention_results> known;
  auto const [it, is_new] = known.try_emplace(to_string(what));
  if (is_new)
    it->second =
        measure::measure_attention(what, measure::default_formats(), {.working_set = measure::cold_working_set()},
                                   bench::bandwidth_of(what.threads));
  return it->second;
}

void attend(benchmark::State& st, job const& what, std::size_t format) {
  attention_results const& all = results_of(what);
  if (all.results.empty()) return st.SkipWithError(all.skipped.c_str());
  measure::attention_result const& it = all.results[format];
  for (auto _ : st) st.SetIterationTime(it.seconds_per_call);
  st.counters["ns_per_token_layer"] = it.ns_per_token_layer;
  st.counters["gbps"] = it.gigabytes_per_second;
  st.counters["share_of_bandwidth"] = it.share_of_bandwidth;
  st.counters["ratio_to_f16"] = it.ratio_to_f16;
  st.counters["bytes"] = static_cast<double>(it.bytes);
  st.counters["error"] = it.error;
}

/// The baseline and the formats, in the order of the results.
void add(job const& what) {
  std::vector<measure::format_choice> formats = measure::default_formats();
  formats.insert(formats.begin(), measure::baseline_format());
  for (std::size_t i = 0; i < formats.size(); ++i) {
    std::string name = to_string(what) + ", " + to_string(formats[i]);
    std::replace(name.begin(), name.end(), ' ', '_');
    benchmark::RegisterBenchmark(name.c_str(), [what, i](benchmark::State& st) { attend(st, what, i); })
        ->UseManualTime()
        ->Iterations(1);
  }
}

void add_all() {
  for (model_shape const& shape : measure::default_shapes())
    for (char const* const context : {"256", "1K", "4K", "8K", "16K", "32K", "128K"})
      for (std::size_t const batch : {1u, 16u})
        for (int const threads : {1, 2})
          add({.shape = shape, .context = measure::parse_context(context), .batch = batch, .threads = threads});
}

}  // namespace

int main(int argc, char** argv) { return kvquant::bench::run(argc, argv, add_all); }
