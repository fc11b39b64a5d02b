#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "kvquant/core/error.hpp"
#include "tools/kvquant/common.hpp"

namespace kvquant::tool {

namespace {

/// The folder of the program that makes reports: installed in share/, or built beside this tool.
fs::path find_report_program() {
  std::error_code unknown;
  fs::path const here = fs::read_symlink("/proc/self/exe", unknown).parent_path();
  for (fs::path const& folder : {here.parent_path() / "share" / "kvquant" / "report", here / "report"})
    if (fs::exists(folder / "__main__.py")) return folder;
  throw error{errc::bad_file, text("report: neither ../share/kvquant/report nor report beside ", here.string(),
                                   ", expected one of them")};
}

/// The program that reads the other commands' files is Python, for its plots. This process becomes it.
void report(std::vector<std::string> arguments) {
  char const* const chosen = std::getenv("KVQUANT_PYTHON");
  std::string const python = chosen != nullptr ? chosen : "python3";
  arguments.insert(arguments.begin(), {python, "-B", find_report_program().string()});
  std::vector<char*> words;
  for (std::string& it : arguments) words.push_back(it.data());
  words.push_back(nullptr);
  ::execvp(python.c_str(), words.data());
  throw error{errc::bad_file, text("report: ", python, " cannot be run: ", std::strerror(errno),
                                   ", expected Python 3.9 or later (KVQUANT_PYTHON)")};
}

}  // namespace

void add_report(CLI::App& app) {
  auto* const command = app.add_subcommand("report", "a page of figures from the files that other commands wrote");
  command->set_help_flag();
  command->prefix_command();  // options are the program's own
  command->callback([command] { report(command->remaining()); });
}

}  // namespace kvquant::tool
