#pragma once
/// \file
/// What attention is measured on: a backend with a machine to run on.

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "measure/job.hpp"

namespace kvquant::measure {

struct timed_calls {
  std::size_t calls = 0;
  double seconds = 0;  ///< of all of them
};

/// Filled caches of one format, with attention over them.
class attention_subject {
 public:
  virtual ~attention_subject() = default;
  /// At least `fewest` calls of one query for each sequence, each on the layer that was read longest ago.
  virtual timed_calls run(std::size_t fewest) = 0;
  /// ‖got − expected‖ / ‖expected‖ against the reference, in double precision.
  virtual double relative_error() = 0;
};

struct attention_target {
  double bandwidth = 0;         ///< bytes per second that it reads
  std::size_t free_bytes = 0;   ///< of its memory
  std::size_t cold_bytes = 0;   ///< of the layers of a case: what one reads is cold again when its turn comes
  std::size_t most_layers = 0;  ///< that a case may have
  /// What one call reads of pages and of exact tokens.
  std::function<std::size_t(job const&, format_choice const&)> bytes_per_call;
  /// Every layer has pages of its own, all of them copies of a few that were quantized.
  std::function<std::unique_ptr<attention_subject>(job const&, format_choice const&, int layers)> make_subject;
};

/// Worker threads of this machine.
attention_target cpu_target(int threads);

/// The current CUDA device. Throws `unsupported` where there is none. Only where the CUDA backend is built.
attention_target cuda_target();

/// Names of the backends that attention is measured on: "cpu", and "cuda" where it is built.
std::vector<std::string> attention_backends();

/// Throws `unsupported` for any other name. `threads`: of the CPU.
attention_target target_of(std::string_view backend, int threads);

/// The best instructions, "avx2", or the device, "sm_90".
std::string machine_of(std::string_view backend);

}  // namespace kvquant::measure
