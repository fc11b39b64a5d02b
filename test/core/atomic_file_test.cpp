#include "kvquant/core/atomic_file.hpp"

#include <sys/resource.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "kvquant/core/error.hpp"

namespace {

using namespace kvquant;
namespace fs = std::filesystem;

/// A folder of its own for each test, gone with it.
class scratch_folder {
 public:
  scratch_folder()
      : path_(fs::temp_directory_path() / ("kvquant_atomic_file_" + std::to_string(std::random_device{}()))) {
    fs::create_directories(path_);
  }
  scratch_folder(scratch_folder const&) = delete;
  scratch_folder& operator=(scratch_folder const&) = delete;
  ~scratch_folder() { fs::remove_all(path_); }

  fs::path operator/(std::string const& name) const { return path_ / name; }
  std::size_t entries() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
  }

 private:
  fs::path path_;
};

/// Files of this process end at `bytes`, for root too: what is written beyond fails, as on a full disk.
class file_size_limit {
 public:
  explicit file_size_limit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit const limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  file_size_limit(file_size_limit const&) = delete;
  file_size_limit& operator=(file_size_limit const&) = delete;
  ~file_size_limit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

void put(fs::path const& path, std::string const& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::string contents(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// The text of the `bad_file` that `f` throws.
template <class F>
std::string bad_file_text(F&& f) {
  try {
    f();
  } catch (error const& caught) {
    CHECK(caught.code == errc::bad_file);
    return caught.what();
  }
  FAIL("nothing thrown");
  return {};
}

void write_whole(fs::path const& path, std::string const& bytes) {
  atomic_file file(path);
  file.write(bytes);
  file.commit();
}

constexpr std::size_t small = 1000;         // waits in the stream's buffer until the commit
constexpr std::size_t large = 1024 * 1024;  // goes to the disk at once

}  // namespace

TEST_CASE("a file appears with its commit and not before", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  {
    atomic_file file(path);
    file.write("one ");
    CHECK_FALSE(fs::exists(path));
    file.write("two");
    file.commit();
    CHECK(contents(path) == "one two");
  }
  CHECK(contents(path) == "one two");
  CHECK(folder.entries() == 1);
}

TEST_CASE("bytes of any value arrive as they are, in any number", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  std::size_t const count = GENERATE(std::size_t{0}, std::size_t{1}, std::size_t{255}, small, large + 3);
  std::mt19937 random(5);
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  atomic_file file(path);
  file.write(std::as_bytes(std::span(bytes)).first(count / 3));
  file.write(std::string_view(bytes).substr(count / 3));
  file.commit();
  CHECK(contents(path) == bytes);
}

TEST_CASE("a commit replaces the old file whole, a longer one too", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  put(path, std::string(small, 'x'));
  atomic_file file(path);
  file.write("new");
  CHECK(contents(path) == std::string(small, 'x'));
  file.commit();
  CHECK(contents(path) == "new");
  CHECK(folder.entries() == 1);
}

TEST_CASE("without a commit the old file stays and nothing is left beside it", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  bool const existed = GENERATE(false, true);
  if (existed) put(path, "old");
  { atomic_file(path).write(std::string(GENERATE(small, large), 'n')); }
  CHECK(fs::exists(path) == existed);
  if (existed) CHECK(contents(path) == "old");
  CHECK(folder.entries() == (existed ? 1 : 0));
}

TEST_CASE("an exception between writes leaves the old file", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  put(path, "old");
  auto const interrupted = [&] {
    atomic_file file(path);
    file.write("half of the new");
    throw std::logic_error("interrupted");
  };
  CHECK_THROWS_AS(interrupted(), std::logic_error);
  CHECK(contents(path) == "old");
  CHECK(folder.entries() == 1);
}

TEST_CASE("what an interrupted process left beside the file does not get into the next one", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  put(folder / "a.bin.partial", std::string(small, 'x'));
  write_whole(path, "new");
  CHECK(contents(path) == "new");
  CHECK(folder.entries() == 1);
}

TEST_CASE("a folder that is not there is an error naming path and reason", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "missing/a.bin";
  std::string const text = bad_file_text([&] { atomic_file file(path); });
  CHECK(text == path.string() + ": cannot be created: No such file or directory");
  CHECK(folder.entries() == 0);
}

TEST_CASE("a file in the place of a folder is an error naming path and reason", "[core]") {
  scratch_folder const folder;
  put(folder / "file", "old");
  auto const path = folder / "file/a.bin";
  CHECK(bad_file_text([&] { atomic_file file(path); }) == path.string() + ": cannot be created: Not a directory");
  CHECK(contents(folder / "file") == "old");
}

TEST_CASE("a folder in the place of the file stays, and nothing is left beside it", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  fs::create_directory(path);
  put(path / "inside", "old");
  std::string const text = bad_file_text([&] { write_whole(path, "new"); });
  CHECK_THAT(text, Catch::StartsWith(path.string() + ": cannot be put in place: "));
  CHECK_THAT(text, Catch::Contains("directory"));
  CHECK(contents(path / "inside") == "old");
  CHECK(folder.entries() == 1);
}

TEST_CASE("a full disk leaves nothing half-written and says so", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  bool const existed = GENERATE(false, true);
  std::size_t const bytes = GENERATE(small, large);
  if (existed) put(path, "old");
  std::string text;
  {
    file_size_limit const limit(small / 2);
    text = bad_file_text([&] { write_whole(path, std::string(bytes, 'n')); });
  }
  CHECK(text == path.string() + ": cannot be written: File too large");
  CHECK(fs::exists(path) == existed);
  if (existed) CHECK(contents(path) == "old");
  CHECK(folder.entries() == (existed ? 1 : 0));
}

TEST_CASE("a device without space is an error naming path and reason", "[core]") {
  if (!fs::is_character_file("/dev/full")) return;  // Linux alone has it
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  put(path, "old");
  fs::create_symlink("/dev/full", folder / "a.bin.partial");
  std::size_t const bytes = GENERATE(small, large);
  std::string const text = bad_file_text([&] { write_whole(path, std::string(bytes, 'n')); });
  CHECK(text == path.string() + ": cannot be written: No space left on device");
  CHECK(contents(path) == "old");
  CHECK(folder.entries() == 1);
  CHECK(fs::is_character_file("/dev/full"));
}

TEST_CASE("a write that failed is not forgotten at the commit", "[core]") {
  scratch_folder const folder;
  auto const path = folder / "a.bin";
  {
    atomic_file file(path);
    {
      file_size_limit const limit(small / 2);
      CHECK_THROWS_AS(file.write(std::string(large, 'n')), error);
    }
    CHECK_THROWS_AS(file.commit(), error);
  }
  CHECK(folder.entries() == 0);
}

TEST_CASE("an unfinished file has one owner", "[core]") {
  STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<atomic_file>);
  STATIC_REQUIRE_FALSE(std::is_move_constructible_v<atomic_file>);
  STATIC_REQUIRE_FALSE(std::is_copy_assignable_v<atomic_file>);
}
