#include "tools/kvquant/common.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <utility>

#include "kvquant/core/atomic_file.hpp"
#include "kvquant/core/error.hpp"
#include "kvquant/core/hash.hpp"
#include "runtime/cache_engine.hpp"

namespace kvquant::tool {

void add_outputs(CLI::App& command, common_options& options) {
  command.add_option("--json", options.json, "write what the table shows to this file")->type_name("FILE");
  command.add_flag("--quiet", options.quiet, "no progress bar, no table");
}

void add_common(CLI::App& command, common_options& options) {
  add_outputs(command, options);
  command.add_option("--threads", options.threads, "worker threads; 0: one per hardware thread")
      ->check(CLI::Range(0, 1024));
}

void add_backend(CLI::App& command, std::string& chosen) {
  auto const names = backend_names();
  command.add_option("--backend", chosen, "what attends over packed pages")
      ->check(CLI::IsMember(std::vector<std::string>(names.begin(), names.end())))
      ->capture_default_str();
}

void add_sampling(CLI::App& command, runtime::sampling_options& sampling) {
  command.add_option("--temperature", sampling.temperature, "0: always the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "choose among so many likeliest tokens; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--top-p", sampling.top_p, "choose among the likeliest tokens of this total probability")
      ->check(CLI::Range(1e-6, 1.0))
      ->capture_default_str();
}

CLI::Option* add_text(CLI::App& command, text_options& options) {
  command.add_option("--remove", options.remove, "delete this string from the text first (may be repeated)")
      ->type_name("STRING")
      ->allow_extra_args(false);
  return command.add_option("--text", options.path, "plain text, UTF-8")->type_name("FILE");
}

std::string read_text(text_options const& options) {
  std::error_code code;
  bool const regular = fs::is_regular_file(options.path, code);
  require(regular, errc::bad_file, options.path, ": ", code ? code.message() : "not a file");
  std::ifstream in(options.path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(in), {}};
  require(!in.bad() && in.is_open(), errc::bad_file, options.path, ": cannot be read");
  for (std::string const& unwanted : options.remove) {
    if (unwanted.empty()) continue;
    std::string kept;
    std::size_t from = 0;
    for (std::size_t at = content.find(unwanted); at != std::string::npos; at = content.find(unwanted, from)) {
      kept.append(content, from, at - from);
      from = at + unwanted.size();
    }
    content = kept.append(content, from);
  }
  require(!content.empty(), errc::bad_value, options.path, ": the text is empty");
  return content;
}

std::string text_hash(std::string const& text) {
  fingerprint hash;
  hash.add(std::string_view(text));
  return hash.hex();
}

progress::progress(std::string label, std::size_t total, bool quiet)
    : label_(std::move(label)),
      total_(total),
      shown_(!quiet && total > 0 && isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {
  draw();
}

progress::~progress() {
  if (shown_) fmt::print(stderr, "\r\033[K");
}

void progress::advance(std::size_t steps) {
  done_ = std::min(total_, done_ + steps);
  draw();
}

void progress::draw() {
  if (!shown_) return;
  constexpr std::size_t width = 30;
  double const share = static_cast<double>(done_) / static_cast<double>(total_);
  auto const filled = static_cast<std::size_t>(share * static_cast<double>(width));
  std::string left;
  if (done_ > 0) {
    double const spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    auto const seconds = static_cast<int>(std::lround(spent * (1 - share) / share));
    left = fmt::format(", {:02}:{:02} left", seconds / 60, seconds % 60);
  }
  fmt::print(stderr, "\r\033[K{} [{:#>{}}{:.>{}}] {:3.0f} %{}", label_, "", filled, "", width - filled, 100 * share,
             left);
  std::fflush(stderr);
}

void print_table(std::vector<std::vector<std::string>> const& rows) {
  auto const code_points = [](std::string const& cell) {  // what fmt pads to
    return static_cast<std::size_t>(std::count_if(
        cell.begin(), cell.end(), [](char byte) { return (static_cast<unsigned char>(byte) & 0xc0) != 0x80; }));
  };
  std::vector<std::size_t> widths;
  for (auto const& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], code_points(row[i]));
  }
  for (auto const& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i)
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i]) : fmt::format("  {:>{}}", row[i], widths[i]);
    fmt::print("{}\n", one_line(std::move(line)));
  }
}

std::string one_line(std::string text) {
  auto const is_control = [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; };
  std::replace_if(text.begin(), text.end(), is_control, ' ');
  return text;
}

void check_outputs(std::vector<std::string> const& outputs, std::vector<std::string> const& inputs) {
  std::vector<fs::path> taken;
  std::error_code ignored;  // of files that are not there
  auto const place_of = [&](std::string const& path) {
    return fs::weakly_canonical(fs::absolute(path, ignored), ignored);
  };
  for (std::string const& input : inputs) taken.push_back(place_of(input));
  for (std::string const& output : outputs) {
    if (output.empty()) continue;
    require(!fs::exists(output, ignored) || fs::is_regular_file(output, ignored), errc::bad_file, output,
            ": cannot be written: not a regular file");
    auto const place = place_of(output);
    require(std::find(taken.begin(), taken.end(), place) == taken.end(), errc::bad_file, output,
            ": is read or written already, expected another name for this output");
    taken.push_back(place);
    atomic_file const can_be_created(output);
  }
}

void write_json(std::string const& path, nlohmann::json const& value) {
  if (path.empty()) return;
  atomic_file file(path);
  file.write(value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  file.commit();
}

}  // namespace kvquant::tool
