#include "tools/kvquant/plan_output.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "kvquant/core/atomic_file.hpp"

namespace kvquant::tool {

namespace {

/// As RFC 4180 has it: quoted where it holds what separates.
std::string cell(nlohmann::json const& value) {
  std::string plain = value.is_string() ? value.get<std::string>() : value.dump();
  if (plain.find_first_of(",\"\n") == plain.npos) return plain;
  std::string quoted = "\"";
  for (char const it : plain) quoted += it == '"' ? std::string("\"\"") : std::string(1, it);
  return quoted + "\"";
}

}  // namespace

std::string size_name(double bytes) {
  if (bytes >= 0x1p30) return fmt::format("{:.1f} GiB", bytes / 0x1p30);
  if (bytes >= 0x1p20) return fmt::format("{:.1f} MiB", bytes / 0x1p20);
  return fmt::format("{:.1f} KiB", bytes / 0x1p10);
}

void write_csv(std::string const& path, nlohmann::json const& rows) {
  if (path.empty()) return;
  std::vector<std::string> names;
  for (auto const& row : rows)
    for (auto const& [name, value] : row.items())
      if (value.is_primitive() && std::ranges::find(names, name) == names.end()) names.push_back(name);
  std::string lines = fmt::format("{}\n", fmt::join(names, ","));
  for (auto const& row : rows) {
    std::vector<std::string> cells;
    for (std::string const& name : names) cells.push_back(row.contains(name) ? cell(row.at(name)) : "");
    lines += fmt::format("{}\n", fmt::join(cells, ","));
  }
  atomic_file file(path);
  file.write(lines);
  file.commit();
}

}  // namespace kvquant::tool
