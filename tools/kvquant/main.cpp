/// The command line tool. Exit status: 0, 1 for bad input, 2 for bad usage; errors are one line on stderr.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "kvquant/core/config.hpp"
#include "kvquant/core/error.hpp"
#include "tools/kvquant/common.hpp"

int main(int argc, char** argv) {
  CLI::App app(
      "KV-cache quantization: calibrate a model, measure what fewer bits do to it, give it tasks, generate on it, "
      "plan its memory, look inside the files, time the kernels.",
      "kvquant");
  app.set_version_flag("--version", KVQUANT_VERSION);
  app.require_subcommand(0, 1);  // a word that names none is complained of before none is
  kvquant::tool::add_bench(app);
  kvquant::tool::add_calibrate(app);
  kvquant::tool::add_eval(app);
  kvquant::tool::add_generate(app);
  kvquant::tool::add_inspect(app);
  kvquant::tool::add_plan(app);
  kvquant::tool::add_report(app);
  kvquant::tool::add_task(app);
  kvquant::tool::add_tokenize(app);
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) throw CLI::RequiredError::Subcommand(1);
    kvquant::require(std::fflush(stdout) == 0, kvquant::errc::bad_file, "standard output: cannot be written");
    return 0;
  } catch (CLI::Success const& help) {
    return app.exit(help);
  } catch (CLI::ParseError const& usage) {
    fmt::print(stderr, "kvquant: {} (--help shows the usage)\n", kvquant::tool::one_line(usage.what()));
    return 2;
  } catch (std::exception const& failure) {
    fmt::print(stderr, "kvquant: {}\n", kvquant::tool::one_line(failure.what()));
    return 1;
  }
}
