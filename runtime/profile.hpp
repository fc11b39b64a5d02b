#pragma once
/// \file
/// Where the time of a model on a paged cache goes.

#include "kvquant/attend/attend.hpp"

namespace kvquant::runtime {

/// Seconds, all calls that were given it together, as the calling thread sees them: workers' time is not added up. What
/// none of them counts is embeddings, norms, activations. One profile serves one call at a time.
struct profile {
  decode_seconds cache;
  double products = 0;  ///< with the weights of the layers, which become floats for it
  double logits = 0;

  double counted() const { return cache.append + cache.attend + products + logits; }
};

}  // namespace kvquant::runtime
