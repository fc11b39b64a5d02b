#include "tools/tasks/results.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "kvquant/core/error.hpp"

namespace kvquant::tasks {

namespace {

using nlohmann::json;

std::string to_line(json const& it) { return it.dump(-1, ' ', false, json::error_handler_t::replace) + "\n"; }

void require_same(std::string const& path, json const& there, json const& here) {
  for (json const& one : {there, here})
    for (auto const& [name, ignored] : one.items()) {
      json const before = there.value(name, json()), now = here.value(name, json());
      require(before == now, errc::bad_value, path, ": results of another run: \"", name, "\" is ", before.dump(),
              " there and ", now.dump(), " here, expected the same, or another file (-o)");
    }
}

}  // namespace

results_file::results_file(std::string path, json const& header) : path_(std::move(path)) {
  if (path_.empty()) return;
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail("cannot be opened");
  try {
    require(::flock(descriptor_, LOCK_EX | LOCK_NB) == 0, errc::bad_file, path_, ": another run writes to it");
    read(header);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

results_file::~results_file() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

json const* results_file::find(std::string const& sample, std::string const& cache) const {
  auto const found = places_.find({sample, cache});
  return found == places_.end() ? nullptr : &lines_[found->second];
}

void results_file::append(json line) {
  if (descriptor_ >= 0) write(line);
  keep(std::move(line), path_);
}

void results_file::read(json const& header) {
  std::string content;
  std::array<char, 1 << 16> piece;
  while (ssize_t const count = ::read(descriptor_, piece.data(), piece.size())) {
    if (count < 0 && errno != EINTR) fail("cannot be read");
    if (count > 0) content.append(piece.data(), static_cast<std::size_t>(count));
  }
  std::string const first = to_line(header);
  std::size_t const whole = content.rfind('\n') + 1;  // 0 if there is no line
  require(whole > 0 || first.starts_with(content), errc::bad_file, path_, ": holds something else than results");
  std::string_view left = std::string_view(content).substr(0, whole);
  for (std::size_t number = 1; !left.empty(); ++number) {
    std::size_t const end = left.find('\n');
    json line = json::parse(left.substr(0, end), nullptr, false);
    std::string const where = text(path_, ": line ", number);
    require(line.is_object(), errc::bad_file, where, ": no JSON object");
    if (number == 1) {
      require(line.contains("kvquant_results"), errc::bad_file, path_, ": holds something else than results");
      require_same(path_, line, json::parse(first));
    } else {
      keep(std::move(line), where);
    }
    left.remove_prefix(end + 1);
  }
  if (whole < content.size() && ::ftruncate(descriptor_, static_cast<off_t>(whole)) != 0) fail("cannot be written");
  if (whole == 0) write(header);
}

void results_file::keep(json line, std::string const& where) {
  auto const text_of = [&](char const* name) {
    auto const found = line.find(name);
    require(found != line.end() && found->is_string(), errc::bad_file, where, ": expected \"", name, "\", a string");
    return found->get<std::string>();
  };
  bool const added = places_.try_emplace({text_of("sample"), text_of("cache")}, lines_.size()).second;
  require(added, errc::bad_file, where, ": a sample that was there before");
  lines_.push_back(std::move(line));
}

/// One call for the whole line: a run that is killed leaves all of it, or a start without an end.
void results_file::write(json const& line) {
  std::string const bytes = to_line(line);
  for (std::string_view left = bytes; !left.empty();) {
    ssize_t const count = ::write(descriptor_, left.data(), left.size());
    if (count < 0 && errno != EINTR) fail("cannot be written");
    left.remove_prefix(static_cast<std::size_t>(count < 0 ? 0 : count));
  }
}

void results_file::fail(char const* what) const {
  throw error{errc::bad_file, text(path_, ": ", what, ": ", std::strerror(errno))};
}

}  // namespace kvquant::tasks
