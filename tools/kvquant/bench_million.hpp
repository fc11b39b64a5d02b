#pragma once
/// \file
/// `bench million`: whether a cache of a million tokens is one, and how fast it is.

#include <CLI/CLI.hpp>

namespace kvquant::tool {

/// Adds the subcommand to `bench`.
void add_million(CLI::App& bench);

}  // namespace kvquant::tool
