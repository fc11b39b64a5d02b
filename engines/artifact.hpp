#pragma once
/// \file
/// Artifacts whose format is chosen at run time: compiled once here, for whoever fits, reads or uses them by name.

#include <cstddef>
#include <filesystem>
#include <string>

#include "kvquant/calibrate/any_artifact.hpp"
#include "kvquant/calibrate/calibrator.hpp"
#include "kvquant/calibrate/fit.hpp"
#include "kvquant/core/view.hpp"

namespace kvquant {

/// What `adaptive` keeps sparse of a page's elements unless something else is asked for.
inline constexpr double default_adaptive_outliers = 0.005;
/// Of a channel's histogram for `adaptive`: as fine as 16 levels need, outliers included.
inline constexpr std::size_t adaptive_channel_bins = 512;

/// `fit<S>` of the spec of that name. Throws `bad_format` naming the ones there are, and what `fit` throws.
any_artifact fit(std::string const& spec, calibrator const& statistics, fit_options const& options);

/// One that reading it from a file would not refuse, with its hash. Throws `bad_file` or `bad_format` where it would.
any_artifact checked(any_artifact const& it);

/// Writes the artifact; the file appears whole or not at all. Sets `info.hash`.
void save(any_artifact& it, std::filesystem::path const& path);

/// What each token reads as by itself, its outliers added: keys and values of one layer, [tokens, kv_channels], keys
/// where the artifact quantizes them. A page keeps as many outliers as it has slots, so a cache may differ. Throws
/// `bad_shape`, and `bad_value` naming what binary16 cannot hold.
void round_keys(any_artifact const& it, int layer, view2d<float> k);
void round_values(any_artifact const& it, int layer, view2d<float> v);

/// Bits of an element of a whole page, all that is allocated for it; of keys and values together.
double bits_per_element(artifact_info const& info);

}  // namespace kvquant
