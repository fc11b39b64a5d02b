#pragma once
/// \file
/// `plan --solve`: formats of least predicted loss within a budget.

#include <string>
#include <vector>

#include "tools/kvquant/common.hpp"
#include "tools/plan/cache_plan.hpp"

namespace kvquant::tool {

struct solve_sources {
  std::vector<std::string> artifacts, statistics;
  std::string budget;  ///< for the cache on one device
};

/// `request`: all but the shape, which is that of the sources, and the format.
void solve_plan(solve_sources const& sources, int devices, plan::cache_request request, common_options const& common,
                std::string const& csv);

}  // namespace kvquant::tool
