#include "runtime/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "kvquant/core/error.hpp"

namespace kvquant::runtime {
namespace {

[[noreturn]] void fail(std::filesystem::path const& path, std::string_view what, int code) {
  throw error{errc::bad_file, text(path.string(), ": cannot ", what, ": ", std::generic_category().message(code))};
}

struct descriptor {
  int value;
  ~descriptor() {
    if (value >= 0) ::close(value);
  }
};

}  // namespace

mapped_file::mapped_file(std::filesystem::path const& path) {
  // O_NONBLOCK: a pipe without a writer is refused below instead of being waited for.
  descriptor const file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.value < 0) fail(path, "open", errno);
  struct stat status {};
  if (::fstat(file.value, &status) != 0) fail(path, "read its size", errno);
  require(S_ISREG(status.st_mode), errc::bad_file, path.string(), ": not a regular file");
  auto const size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return;  // nothing to map
  void* const start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.value, 0);
  if (start == MAP_FAILED) fail(path, "map", errno);
  bytes_ = {static_cast<std::byte const*>(start), size};
}

mapped_file::mapped_file(mapped_file&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

mapped_file& mapped_file::operator=(mapped_file&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

mapped_file::~mapped_file() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace kvquant::runtime
