#include "tools/tasks/results.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>
#include <iterator>

#include "test/support/containers.hpp"
#include "test/support/thrown.hpp"

namespace kvquant::tasks {
namespace {

using nlohmann::json;
using test::error_of, test::says;

json const header = {{"kvquant_results", 1}, {"seed", 3}, {"share", 0.1}};

json line(std::string const& sample, std::string const& cache, double score = 0.25) {
  return {{"sample", sample}, {"cache", cache}, {"score", score}};
}

struct stored {
  test::temporary_folder folder;
  std::string path = (folder / "r.jsonl").string();

  std::string content() const {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(std::string const& content) const { std::ofstream(path, std::ios::binary) << content; }
  /// The error of going on with the file.
  test::thrown refused(json const& with = header) const {
    return error_of([&] { results_file(path, with); });
  }
};

TEST_CASE("results are found again by the next run") {
  stored const it;
  {
    results_file first(it.path, header);
    first.append(line("a/1", "f16"));
    first.append(line("a/1", "nuq3", 0.5));
    CHECK(first.find("a/1", "nuq3")->at("score") == 0.5);
    CHECK(first.find("a/2", "f16") == nullptr);
  }
  results_file second(it.path, header);
  CHECK(second.lines().size() == 2);
  second.append(line("a/2", "f16"));
  CHECK(results_file("", header).lines().empty());
  std::string const content = it.content();
  CHECK(std::count(content.begin(), content.end(), '\n') == 4);
}

TEST_CASE("a torn last line is dropped, wherever it ends") {
  stored const it;
  {
    results_file first(it.path, header);
    first.append(line("a/1", "f16"));
    first.append(line("a/2", "f16"));
  }
  std::string const whole = it.content();
  for (std::size_t bytes = 0; bytes <= whole.size(); ++bytes) {
    it.write(whole.substr(0, bytes));
    std::string const left = whole.substr(0, bytes);
    auto const lines = static_cast<std::size_t>(std::count(left.begin(), left.end(), '\n'));
    results_file again(it.path, header);
    CHECK(again.lines().size() == (lines == 0 ? 0 : lines - 1));
    for (std::string const sample : {"a/1", "a/2"})
      if (again.find(sample, "f16") == nullptr) again.append(line(sample, "f16"));
    CHECK(it.content() == whole);
  }
}

TEST_CASE("other headers are refused by what differs") {
  stored const it;
  { results_file const first(it.path, header); }
  json other = header;
  other["seed"] = 4;
  CHECK(it.refused(other).code == errc::bad_value);
  CHECK_THAT(it.refused(other).text, says("\"seed\" is 3 there and 4 here"));
  other = header;
  other["more"] = true;
  CHECK_THAT(it.refused(other).text, says("\"more\" is null there and true here"));
}

TEST_CASE("files of anything else are refused and stay") {
  stored const it;
  for (std::string const content : {"a diary", "a diary\n", "{}\n", "[1]\n"}) {
    it.write(content);
    CHECK(it.refused().code == errc::bad_file);
    CHECK(it.content() == content);
  }
  std::string const first = header.dump() + "\n";
  it.write(first + "{\"sample\": \"a\"\n" + line("a", "b").dump() + "\n");
  CHECK_THAT(it.refused().text, says("r.jsonl: line 2: no JSON object"));
  it.write(first + "{\"sample\": \"a\"}\n");
  CHECK_THAT(it.refused().text, says("r.jsonl: line 2: expected \"cache\""));
  it.write(first + line("a", "b").dump() + "\n" + line("a", "b").dump() + "\n");
  CHECK_THAT(it.refused().text, says("r.jsonl: line 3: a sample that was there before"));
}

TEST_CASE("two runs do not write to one file") {
  stored const it;
  results_file const first(it.path, header);
  CHECK_THAT(it.refused().text, says("another run writes to it"));
}

TEST_CASE("answers may hold any bytes") {
  stored const it;
  {
    results_file first(it.path, header);
    first.append({{"sample", "a"}, {"cache", "f16"}, {"answer", "\xff\n\""}});
  }
  CHECK(results_file(it.path, header).find("a", "f16")->at("answer") == "\uFFFD\n\"");
}

}  // namespace
}  // namespace kvquant::tasks
