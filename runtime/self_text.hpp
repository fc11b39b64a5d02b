#pragma once
/// \file
/// Text that a model writes itself, to calibrate on where there is no other.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/model.hpp"

namespace kvquant::runtime {

struct self_text_options {
  std::size_t windows = 0;
  std::size_t tokens = 0;  ///< of a window, the first one included
  std::uint64_t seed = 0;
};

/// Windows that begin with `first`, a BOS say; every further token is drawn by the model's own probabilities. The cache
/// is in binary16, `model_hash` is the model's. `advance` is called after every token of a window, if there is one.
std::vector<std::vector<token_id>> write_self_text(model const& m, std::string const& model_hash, token_id first,
                                                   self_text_options const& options,
                                                   std::function<void()> const& advance = {});

}  // namespace kvquant::runtime
