#pragma once
/// \file
/// A filled cache of one format, with attention over it.

#include <cstddef>
#include <memory>

#include "kvquant/core/executor.hpp"
#include "measure/job.hpp"

namespace kvquant::measure {

class attention_subject {
 public:
  virtual ~attention_subject() = default;
  /// One query for each sequence, all in one layer.
  virtual void attend(int layer, executor_ref executor) = 0;
  /// ‖got − expected‖ / ‖expected‖ against the reference, in double precision, over as many KV heads of the last
  /// layer of the last sequence as take a second or so.
  virtual double relative_error(executor_ref executor) = 0;
};

/// What one call reads of pages and of exact tokens.
std::size_t bytes_per_call(job const& what, format_choice const& format);

/// Every layer has pages of its own, all of them copies of a few that were quantized.
std::unique_ptr<attention_subject> make_attention_subject(job const& what, format_choice const& format, int layers);

}  // namespace kvquant::measure
