#pragma once
/// \file
/// What the parts of `kvquant task` share: what is asked for, running it, and telling of it.

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/cache_engine.hpp"
#include "runtime/sampler.hpp"
#include "tools/kvquant/common.hpp"
#include "tools/tasks/longbench.hpp"
#include "tools/tasks/results.hpp"
#include "tools/tasks/sample.hpp"
#include "tools/tasks/tested_cache.hpp"

namespace kvquant::tool {

struct task_options {
  common_options common;
  std::string model, name, output, text, documents, form_file, backend{default_backend()};
  std::vector<std::string> artifacts, baselines, kinds, data, prompts;
  std::vector<std::size_t> lengths;
  std::vector<int> depths = {0, 25, 50, 75, 100};
  std::optional<std::size_t> samples;
  std::uint64_t seed = 0;
  tasks::longbench_choices longbench;
  runtime::sampling_options sampling;
  int recent_pages = 0;
  bool raw = false;
};

/// A cache by the name that results call it.
struct named_cache {
  std::string name, hash;  ///< of the artifact's file
  std::unique_ptr<tasks::tested_cache> cache;
};

/// What a task is run with.
struct task_run {
  task_options const& options;
  model_file const& opened;
  runtime::model const& model;
  std::vector<named_cache> const& caches;  ///< the first is f16
  nlohmann::json const& header;            ///< of the results
  tasks::results_file& results;
};

/// Each appends a line for every sample and cache that the results lack.
void run_answers(task_run const& run, std::vector<tasks::sample_group> const& groups);
void run_needle_kl(task_run const& run, std::vector<tasks::sample_group> const& groups);
void run_drift(task_run const& run, std::vector<tasks::sample_group> const& groups);

/// The result of a task: as JSON, and as tables on standard output.
nlohmann::json summarise_task(task_run const& run);
void print_task(task_run const& run);

}  // namespace kvquant::tool
