#pragma once
/// \file
/// How `plan` writes sizes, and the files of its rows.

#include <array>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/plan/memory_plan.hpp"

namespace kvquant::tool {

using text_table = std::vector<std::vector<std::string>>;

/// "17.3 GiB", "384.0 MiB", "1.5 KiB".
std::string size_name(double bytes);
inline std::string size_name(std::size_t bytes) { return size_name(static_cast<double>(bytes)); }

/// A row of the table of bytes, by its name there and in files.
struct memory_part {
  char const* name;
  char const* key;
  std::size_t (*bytes)(plan::memory_plan const&);
};
inline constexpr std::array memory_parts = {
    memory_part{"codes", "codes", [](plan::memory_plan const& it) { return it.cache.codes; }},
    memory_part{"value ranges", "value_ranges", [](plan::memory_plan const& it) { return it.cache.value_ranges; }},
    memory_part{"slots", "slots", [](plan::memory_plan const& it) { return it.cache.slots; }},
    memory_part{"padding", "padding", [](plan::memory_plan const& it) { return it.cache.padding; }},
    memory_part{"sinks", "sinks", [](plan::memory_plan const& it) { return it.cache.sinks; }},
    memory_part{"tail", "tail", [](plan::memory_plan const& it) { return it.cache.tail; }},
    memory_part{"tables", "tables", [](plan::memory_plan const& it) { return it.cache.tables; }},
    memory_part{"page tables", "page_table", [](plan::memory_plan const& it) { return it.cache.page_table; }},
    memory_part{"slack", "slack", [](plan::memory_plan const& it) { return it.cache.slack; }},
    memory_part{"cache", "cache", [](plan::memory_plan const& it) { return it.cache.total(); }},
    memory_part{"weights", "weights", [](plan::memory_plan const& it) { return it.weights; }},
    memory_part{"activations", "activations", [](plan::memory_plan const& it) { return it.activations; }},
    memory_part{"total", "total", [](plan::memory_plan const& it) { return it.total(); }}};

/// Objects as lines of comma-separated values under the names of their members, if a path was given; the file appears
/// whole or not at all. Members that are no plain values are left out; those that an object lacks are empty.
void write_csv(std::string const& path, nlohmann::json const& rows);

}  // namespace kvquant::tool
