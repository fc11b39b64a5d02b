#pragma once
/// \file
/// The main function of a benchmark that registers its own cases.

#include <benchmark/benchmark.h>

#include <cstdio>
#include <exception>

namespace kvquant::bench {

/// `add_cases()` registers them. The exit status: 1 after an error, 2 after arguments that nobody knows.
template <class AddCases>
int run(int argc, char** argv, AddCases&& add_cases) {
  try {
    add_cases();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
    return 0;
  } catch (std::exception const& failure) {
    std::fprintf(stderr, "%s: %s\n", argv[0], failure.what());
    return 1;
  }
}

}  // namespace kvquant::bench
