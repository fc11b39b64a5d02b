#pragma once
/// \file
/// A file of results that a run which was stopped goes on with: a header, then a JSON object a line.

#include <cstddef>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace kvquant::tasks {

class results_file {
 public:
  /// `header` says what was run on what, with a member "kvquant_results". A file that is there is gone on with: its
  /// header must be the same, and a last line without an end, which a run left that was killed, is dropped. Without a
  /// path the results are in memory alone. Throws `bad_file` for a file of anything else, one that another run writes
  /// to, or one that cannot be written; `bad_value` naming the member in which the headers differ.
  results_file(std::string path, nlohmann::json const& header);
  results_file(results_file const&) = delete;
  results_file& operator=(results_file const&) = delete;
  ~results_file();

  /// The line of a sample with a cache, null if there is none.
  nlohmann::json const* find(std::string const& sample, std::string const& cache) const;
  /// `line` has members "sample" and "cache" that are strings, together new. It is in the file, whole, when this
  /// returns.
  void append(nlohmann::json line);
  std::vector<nlohmann::json> const& lines() const { return lines_; }

 private:
  void read(nlohmann::json const& header);
  void keep(nlohmann::json line, std::string const& where);
  void write(nlohmann::json const& line);
  [[noreturn]] void fail(char const* what) const;

  std::string path_;
  int descriptor_ = -1;
  std::vector<nlohmann::json> lines_;
  std::map<std::pair<std::string, std::string>, std::size_t> places_;  ///< in lines_, by sample and cache
};

}  // namespace kvquant::tasks
