#pragma once
/// \file
/// Cases of Google Benchmark for decode attention over packed pages, beside the same over the library's own binary16
/// pages. A job's formats are timed in turn, and its times are their medians; `ratio_to_f16` is taken round by round.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "measure/attention.hpp"

namespace kvquant::bench {

/// Of all formats of a job, when the first of them is asked for.
inline measure::attention_results const& results_of(measure::job const& what, measure::attention_target const& on) {
  static std::map<std::string, measure::attention_results> known;
  auto const [it, is_new] = known.try_emplace(to_string(what));
  if (is_new) it->second = measure::measure_attention(what, measure::default_formats(), {}, on);
  return it->second;
}

inline void report(benchmark::State& st, measure::attention_results const& all, std::size_t format) {
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

/// The baseline and the formats, in the order of the results. `target_of(job)`: what the job runs on, made when the
/// first of its cases does.
template <class TargetOf>
void add_attention(measure::job const& what, TargetOf target_of) {
  std::vector<measure::format_choice> formats = measure::default_formats();
  formats.insert(formats.begin(), measure::baseline_format());
  for (std::size_t i = 0; i < formats.size(); ++i) {
    std::string name = to_string(what) + ", " + to_string(formats[i]);
    std::replace(name.begin(), name.end(), ' ', '_');
    benchmark::RegisterBenchmark(
        name.c_str(), [what, i, target_of](benchmark::State& st) { report(st, results_of(what, target_of(what)), i); })
        ->UseManualTime()
        ->Iterations(1);
  }
}

}  // namespace kvquant::bench
