#pragma once
/// \file
/// A model on a paged cache.

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "engines/engines.hpp"
#include "kvquant/engine.hpp"
#include "runtime/model.hpp"
#include "runtime/profile.hpp"

namespace kvquant::runtime {

/// The cache that an artifact file describes. Throws `bad_format` naming both models if it was made for another one,
/// `unsupported` naming what the backend lacks.
std::unique_ptr<engine> make_cache(std::filesystem::path const& artifact, std::string_view backend,
                                   model_config const& config, std::string const& model_hash,
                                   cache_options const& options);

/// A cache in binary16 throughout, with pages for `max_tokens`, all sequences together. Files of its sequences belong
/// to the model, as with artifacts.
std::unique_ptr<engine> make_exact_cache(model_config const& config, std::string const& model_hash,
                                         std::size_t max_tokens, std::string_view backend = default_backend());

/// The hidden states of tokens that go on a sequence, [T, hidden], each as if they came one by one. `spent`, if given,
/// grows by where the time went.
matrix forward(model const& m, std::span<token_id const> ids, engine_sequence& sequence, profile* spent = nullptr);

/// The hidden states of one more token of each of several sequences of a cache, [sequences, hidden]: weights are read
/// once for all of them. No sequence may be there twice.
matrix forward_together(model const& m, std::span<token_id const> ids, engine const& cache,
                        std::span<engine_sequence* const> sequences);

}  // namespace kvquant::runtime
